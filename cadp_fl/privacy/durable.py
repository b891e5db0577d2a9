"""The durable ledger: what a real site spent, kept for good, for one population and one privacy unit.

The order that it imposes: reserve durably, draw, store the answer durably, send. Whatever was written down counts, and
a crash refunds nothing; whatever the caller heard of is on the disk, and a mark beside it remembers so (see
`cadp_fl.privacy.chain`, which says what is verified, and when: everything, by every call).

Assumed, and not enforced: nobody puts back the database *and* its mark from one backup, nor forges both. A steward who
writes down the hash of the last entry elsewhere (`cadp-fl site ledger verify`) notices that too.
"""

import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from cadp_fl.config import Settings, SplitRule, parse
from cadp_fl.config.names import NAME, Population, Unit
from cadp_fl.errors import ConfigError, ExchangeError, LedgerError, UnitError
from cadp_fl.privacy.chain import Chain, Link
from cadp_fl.privacy.entries import SHA256, Entry, Sides, entry_from_json
from cadp_fl.privacy.events import Event
from cadp_fl.privacy.plan import Allowance, Conditions, Plan
from cadp_fl.privacy.rules import LedgerRules

__all__ = ["DurableLedger", "LedgerTerms"]

MAX_NAME_CHARACTERS = 200


class LedgerTerms(Settings):
    """Whose budget a ledger keeps. They stand in its first entry, and never change."""

    format: Literal[1, 2] = Field(2, description="of the entries")
    ledger: str = Field(pattern=r"^[0-9a-f]{32}$", description="random id")
    population: Population = Field(description="the people that the budget belongs to, by the steward's name")
    unit: Unit = Field(description="what one neighbouring data set may change")
    records_per_unit: int = Field(1, ge=1, le=1000, description="m: records that one unit contributes, exactly")
    split: SplitRule | None = Field(
        None, description="who is tested on, and so never trained on; format 1 does not say"
    )

    @model_validator(mode="after")
    def _says_who_is_tested_on(self) -> "LedgerTerms":
        if (self.format == 2) != (self.split is not None):
            raise ValueError(f"a ledger says who is tested on from format 2 on. Found format {self.format}")
        return self

    @model_validator(mode="after")
    def _a_record_is_one(self) -> "LedgerTerms":
        if self.unit == "record" and self.records_per_unit != 1:
            raise ValueError(f"a record is one record. Found records_per_unit {self.records_per_unit}")
        return self

    @property
    def sides(self) -> SplitRule:
        """Who is tested on. Nobody from now on, where the ledger does not say who was: see `one_budget`."""
        return self.split or SplitRule(rule="none")

    @property
    def one_budget(self) -> bool:
        """Whether what was given out about test units counts for training units too: they may be the same people.

        A ledger of format 1 does not say who was held out, so nothing keeps people on the side that they were on.
        """
        return self.split is None

    @property
    def protects(self) -> str:
        """The terms in words, for sentences."""
        return f"population '{self.population}', unit {self.unit}, {self.records_per_unit} record(s) a unit"


class DurableLedger:
    """A ledger that outlives the process. Many processes and threads may use it at once; see `Ledger`.

    Made by `create`, `open` or `as_found`.
    """

    simulation = False

    def __init__(self, chain: Chain, terms: LedgerTerms) -> None:
        self.terms = terms
        self.chain = chain
        self._entries: dict[str, Entry] = {}

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        population: str,
        unit: Unit,
        records_per_unit: int = 1,
        split: SplitRule | None = None,
        mark: Path | None = None,
        timeout: float = 30.0,
    ) -> "DurableLedger":
        """Make a ledger of which nothing is spent.

        Args:
            path: of the database, on a local disk.
            split: who is tested on; by default nobody ever is.
            mark: of the file that remembers how far the ledger has come, `<path>.mark` by default; better on another
                volume, one that is not restored together with the database's.
            timeout: seconds to wait while others write.

        Raises:
            ConfigError: the terms are no terms.
            LedgerError: there is a ledger or a mark: it is never reset.
        """
        named = {"population": population, "unit": unit, "records_per_unit": records_per_unit}
        rule = split or SplitRule(rule="none")
        terms = parse(LedgerTerms, {**named, "ledger": secrets.token_hex(16), "split": rule})
        first = {"terms": terms.model_dump(exclude_none=True)}
        return cls(Chain.create(path, first, mark=mark, timeout=timeout), terms)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        population: str,
        unit: Unit,
        records_per_unit: int = 1,
        mark: Path | None = None,
        timeout: float = 30.0,
    ) -> "DurableLedger":
        """Open the ledger of a population, once all of it is verified.

        Raises:
            LedgerError: it is missing, another one's, or cannot be trusted.
        """
        ledger = cls.as_found(path, mark=mark, timeout=timeout)
        ledger.check_terms(population, unit, records_per_unit)
        return ledger

    @classmethod
    def as_found(cls, path: Path, *, mark: Path | None = None, timeout: float = 30.0) -> "DurableLedger":
        """Open a ledger to look at, whosever it is, once all of it is verified.

        Raises:
            LedgerError: it is missing, or cannot be trusted.
        """
        chain = Chain(path, mark=mark, timeout=timeout)
        first = chain.read(thorough=True)[0].entry
        try:
            terms = parse(LedgerTerms, first["terms"])
        except (KeyError, TypeError, ConfigError) as error:
            raise LedgerError(
                f"A ledger's first entry says whose it is. That of '{path}' does not; install the version of cadp-fl "
                "that wrote it."
            ) from error
        ledger = cls(chain, terms)
        ledger.plans()
        return ledger

    def check_terms(self, population: str, unit: Unit, records_per_unit: int) -> None:
        """Check that this is the ledger of a policy's population, with its unit.

        Raises:
            LedgerError: it is another one's.
        """
        terms = self.terms
        if (terms.population, terms.unit, terms.records_per_unit) != (population, unit, records_per_unit):
            raise LedgerError(
                f"A ledger is of one population and one unit. This one is of {terms.protects}, and asked for is "
                f"'{population}', {unit}, {records_per_unit}; use that population's own ledger."
            )

    @property
    def one_budget(self) -> bool:
        """Whether plans on test units count as plans on training units too: they may be the same people."""
        return self.terms.one_budget

    @property
    def path(self) -> Path:
        """The database."""
        return self.chain.path

    @property
    def mark(self) -> Path:
        """The file that remembers how far the ledger has come."""
        return self.chain.mark

    def links(self) -> tuple[Link, ...]:
        """Return every entry with its hashes, once all of them are verified, and the file's structure with them.

        Raises:
            LedgerError: the ledger cannot be trusted.
        """
        links = self.chain.read(thorough=True)
        self.rules(links)
        return links

    def rules(self, links: Sequence[Link] | None = None) -> LedgerRules:
        """Return what entries amount to, once each has proved to be one; by default those that are there now.

        Raises:
            LedgerError: the ledger cannot be trusted.
        """
        links = self.chain.read() if links is None else links
        self._entries = {link.hash: self._entries.get(link.hash) or _entry_of(link) for link in links[1:]}
        return LedgerRules(self._entries.values(), adds_up=True, one_budget=self.terms.one_budget)

    def check(self, plan: Plan, limit: Allowance | None = None) -> None:
        """Check that a plan could be set aside now; raises what `reserve` would."""
        self._check_form(plan, limit)
        _readable(self.rules().reservation(plan, limit))

    def reserve(self, plan: Plan, limit: Allowance | None = None) -> None:
        """Set a plan aside before its first event, if it fits below the limit together with all plans before it.

        Raises:
            BudgetError: the method has a different plan already.
            ExchangeError: the plan has no proper name.
            LedgerError: there is no limit for what adds up, or the ledger cannot be written to or trusted.
            TotalBudgetError: the plan would go beyond the limit.
            UnitError: the plan protects another unit than the ledger.
        """
        self._check_form(plan, limit)
        self._append(lambda rules: _readable(rules.reservation(plan, limit)))

    def _check_form(self, plan: Plan, limit: Allowance | None) -> None:
        """Check what can be said of a plan without looking at others."""
        if limit is None and plan.protected().events:
            raise LedgerError("A plan is held against the total of the site's policy. Found none; give the limit.")
        if plan.unit != self.terms.unit:
            raise UnitError(
                f"A ledger has one unit. This one's is the {self.terms.unit}, and '{plan.key}' protects a {plan.unit}; "
                "use one unit for all."
            )
        if not re.fullmatch(NAME, plan.method) or len(plan.run) > MAX_NAME_CHARACTERS:
            raise ExchangeError(
                f"A plan names its method in at most 40 small letters, digits and dashes, and its run in at most "
                f"{MAX_NAME_CHARACTERS} characters. Found {plan.method[:50]!r} and {plan.run[:50]!r}; choose others."
            )

    def spend(self, key: str, event: Event, *, request: str = "", body: str = "") -> str:
        """Write an event down before it is computed, and return its id, `<method>-<stage>-<number>`.

        No id comes twice, so that noise which is labelled by it never repeats.

        Raises:
            BudgetError: the plan does not hold the event, or holds less of it than would be spent.
            ExchangeError: the request was made before with another body, or was answered.
            LedgerError: the ledger cannot be written to, or cannot be trusted.
        """
        _check_request(request, body)
        name = ""

        def make(rules: LedgerRules) -> Entry:
            nonlocal name
            name = rules.name(key, event)
            return rules.spending(key, event, request, body)

        self._append(make)
        return name

    def entries(self) -> int:
        """Return how many entries there are, the terms among them."""
        return len(self.chain.read())

    def plans(self) -> tuple[Plan, ...]:
        """Return what was reserved, in order."""
        return self.rules().plans()

    def spent(self, key: str) -> tuple[Event, ...]:
        """Return what was spent of a plan, in order, retries included."""
        return self.rules().spent(key)

    def carried_out(self) -> tuple[tuple[Plan, tuple[Event, ...]], ...]:
        """Return every plan and what was spent of it, in order."""
        return self.rules().carried_out()

    def committed(self, units: str) -> Allowance:
        """Return what all plans on training units, or on test units, add up to."""
        return self.rules().committed(units)

    def declare(self, conditions: Conditions) -> None:
        """Write down, once, that exact numbers of training records of each class are given out, before they are.

        Raises:
            LedgerError: the ledger cannot be written to, or cannot be trusted.
        """
        if conditions not in self.declared():
            self._append(lambda rules: rules.declaring(conditions))

    def declared(self) -> tuple[Conditions, ...]:
        """Return the conditions under which such numbers were given out, in order."""
        return self.rules().declared()

    def registered(self) -> str | None:
        """Return the sha256 of the register that says on which side everyone was so far, or None."""
        return self.rules().registered()

    def register(self, sha256: str, *, before: str | None) -> bool:
        """Name the register that holds from now on, and return True; False where it is not `before` that held.

        Raises:
            LedgerError: the ledger cannot be written to, or cannot be trusted.
        """
        return self._append(lambda rules: Sides(sha256) if rules.registered() == before else None) is not None

    def answered(self, request: str, body: str) -> str | None:
        """Return the sha256 of the answer that was stored for a request, or None.

        Raises:
            ExchangeError: the request was made before, with another body.
            LedgerError: the ledger cannot be trusted.
        """
        _check_request(request, body)
        return self.rules().answered(request, body)

    def store(self, request: str, answer: str) -> None:
        """Write down that a request's answer, of this sha256, is safe on the disk; only then may it be sent.

        Raises:
            ExchangeError: nothing was spent on the request, or it has another answer.
            LedgerError: the ledger cannot be written to, or cannot be trusted.
        """
        _check_request(request, answer)
        if not SHA256.fullmatch(answer):
            raise ExchangeError("An answer is named by its sha256. Found something else; give 64 hexadecimal digits.")
        self._append(lambda rules: rules.storing(request, answer))

    def _append(self, make: Callable[[LedgerRules], Entry | None]) -> Link | None:
        """Add the entry that a function makes of those before; see `Chain.append`."""

        def tree(links: Sequence[Link]) -> dict[str, Any] | None:
            entry = make(self.rules(links))
            return None if entry is None else entry.to_json()

        return self.chain.append(tree)


def _check_request(request: str, body: str) -> None:
    if len(request) > MAX_NAME_CHARACTERS or len(body) > MAX_NAME_CHARACTERS:
        raise ExchangeError(
            f"A request's id and hash have at most {MAX_NAME_CHARACTERS} characters each. Found {len(request)} and "
            f"{len(body)}; use a shorter id."
        )


def _entry_of(link: Link) -> Entry:
    """Return the entry that a link of the chain holds.

    Raises:
        LedgerError: it is none.
    """
    try:
        return entry_from_json(link.entry)
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerError(
            "A ledger's entries are plans, events, answers, declarations and registers of sides. Entry "
            f"{link.number} is none that this version knows; install the version of cadp-fl that wrote it, or find out "
            "who did."
        ) from error


def _readable(entry: Entry | None) -> Entry | None:
    """Return an entry, if it can be read again."""
    if entry is not None:
        try:
            entry_from_json(entry.to_json())
        except (KeyError, TypeError, ValueError) as error:
            raise ExchangeError("A plan keeps its retry reserve below its delta. This one is no such plan.") from error
    return entry
