"""The server's side of a federation: whom it can ask, who did not answer, what crossed.

Methods and the workflow see this protocol alone; the Flower adapter implements it over a Grid.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from cadp_fl.errors import CadpError, ExchangeError, FederationError
from cadp_fl.federated.journal import Exchange, Journal
from cadp_fl.federated.recorder import Recorder
from cadp_fl.site.protocol import Action, Reply, Request

__all__ = ["Federation", "Missing", "Node", "Roster", "Traffic", "Transport"]

_FREE: frozenset[Action] = frozenset({"describe", "reserve", "fetch", "account"})
"""Actions that a site does again whenever it is asked: they spend nothing, and no later request depends on them."""


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Missing:
    """A site that did not answer, or not usefully."""

    site: str
    phase: str
    reason: str


@dataclass
class Traffic:
    """Bytes of tensors that crossed, as a site sees them: `up` left it, `down` reached it."""

    up: int = 0
    down: int = 0


@dataclass(frozen=True)
class Node:
    """A node that is connected.

    Attributes:
        id: its number.
        name: under which the coordinator registered it; empty in a simulation.
    """

    id: int
    name: str = ""


Roster = Mapping[str, int]
"""Node id by site name."""

Answer = Reply | CadpError
"""What came back from a node: a reply, or the error that it named."""


class Transport(Protocol):
    """Carries requests to nodes. Nodes are numbered; only the federation knows their names."""

    def nodes(self, expected: int, names: Collection[str] = ()) -> list[Node]:
        """Return the nodes, once `expected` are there or waiting is in vain.

        Args:
            expected: number of nodes.
            names: of those that count; none where nodes have no names.
        """
        ...

    def exchange(
        self, requests: Mapping[int, Request], *, group: str, on_answer: Callable[[int, Answer], None]
    ) -> frozenset[int]:
        """Send a request to each node, call back with what comes in time, and return the nodes that could not be asked.

        A node has one request at a time. One that is still at work on an earlier request gets the new one when it has
        answered the old one, whose answer is dropped; an exchange does not wait for that.
        """
        ...


@dataclass
class Federation:
    """Asks named sites, checks who answered, and keeps going above a quorum.

    Attributes:
        transport: carries requests.
        needed: number of sites below which a phase stops the run.
        recorder: hears of every answer.
        roster: node id by site; frozen once the sites have described themselves.
        missing: who did not answer, and why; one entry a site and phase.
        traffic: bytes by site.
        refused: site and phase of every answer that was an error, which says that nothing was done.
        run: id of the run, under which real sites keep its plans and their answers; empty in a simulation.
        journal: whose answers were used in each round, of a run over real sites.
    """

    transport: Transport
    needed: int
    recorder: Recorder
    roster: Roster = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)
    traffic: dict[str, Traffic] = field(default_factory=dict)
    refused: set[tuple[str, str]] = field(default_factory=set)
    run: str = ""
    journal: Journal | None = None

    @property
    def is_deployed(self) -> bool:
        """Whether the sites are real ones, whose ledgers outlive the run."""
        return bool(self.run)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of all sites, in order."""
        return tuple(sorted(self.roster))

    def ask(
        self,
        request: Request | Mapping[str, Request],
        *,
        phase: str,
        round: int = 1,
        of: int = 1,
        check: Callable[[str, Reply], None] = lambda site, reply: None,
        waits: Callable[[str, CadpError], bool] = lambda site, error: False,
    ) -> dict[str, Reply]:
        """Send a request to every site, and return the replies that pass, by site in order of name.

        A round that was over before the run was interrupted is asked of those sites whose answers were used in it.

        Args:
            request: what to ask all; or what to ask some, by site, for which no quorum is needed.
            phase: the phase of the run, for progress and for naming who is missing.
            round: number of the round in its phase, from 1.
            of: number of rounds in the phase.
            check: raises a `CadpError` where a reply does not fit.
            waits: whether a site that answered with an error will be asked again, so that it is not missing.

        Raises:
            FederationError: all were asked, and fewer sites than needed answered; or an answer that was used before
                does not come again.
        """
        asked = dict(request) if isinstance(request, Mapping) else dict.fromkeys(self.sites, request)
        asked = {site: replace(each, run=self.run, id=f"{self.run}/{phase}/{round}") for site, each in asked.items()}
        is_kept = self.journal is not None and not _FREE & {each.action for each in asked.values()}
        before = self.journal.exchange(phase, round) if self.journal is not None and is_kept else None
        if before is not None:
            asked = {site: each for site, each in asked.items() if site in before.used}
        names = {self.roster[site]: site for site in asked}
        answers: dict[str, Answer] = {}
        lost: dict[str, str] = {}
        later: set[str] = set()

        def on_answer(node: int, answer: Answer) -> None:
            site = names[node]
            answers[site] = checked = self._checked(site, answer, check)
            if isinstance(checked, CadpError) and waits(site, checked):
                later.add(site)
            else:
                self.recorder.answer(phase, round, of, site, checked)

        by_node = {self.roster[site]: each for site, each in asked.items()}
        busy = self.transport.exchange(by_node, group=f"{phase}-{round}", on_answer=on_answer)
        replies: dict[str, Reply] = {}
        for site in sorted(asked):
            answer, traffic = answers.get(site), self.traffic.setdefault(site, Traffic())
            if self.roster[site] not in busy:
                traffic.down += sum(array.nbytes for array in asked[site].arrays.values())
            if isinstance(answer, Reply):
                traffic.up += sum(array.nbytes for array in answer.arrays.values())
                replies[site] = answer
            elif site in later:
                continue
            elif answer is not None:
                self.refused.add((site, phase))
                lost[site] = str(answer)
            elif self.roster[site] in busy:
                lost[site] = "was still at work on an earlier request"
            else:
                lost[site] = "did not answer in time"
        if before is not None:
            _check_came_again(before, replies, lost)
            lost = before.missing
        elif self.journal is not None and is_kept:
            self.journal.note(Exchange(phase=phase, round=round, used=tuple(replies), missing=lost))
        for site, reason in lost.items():
            self.note_missing(site, phase, reason)
        if not isinstance(request, Mapping):
            self.require(phase, len(replies))
        return replies

    def require(self, phase: str, answered: int, *, least: int = 0) -> None:
        """Check that as many sites answered in a phase as are needed.

        Args:
            least: number of sites that the phase needs, whatever the study's quorum.

        Raises:
            FederationError: fewer did.
        """
        if answered < (needed := max(self.needed, least)):
            sites_by_reason: dict[str, list[str]] = {}
            for gap in (gap for gap in self.missing if gap.phase == phase):
                sites_by_reason.setdefault(gap.reason, []).append(gap.site)
            lost = " ".join(f"{', '.join(sites)}: {reason}" for reason, sites in sites_by_reason.items())
            raise FederationError(
                f"Phase '{phase}' needs {needed} sites (sites.quorum). {answered} of {len(self.roster)} answered. "
                f"{lost}"
            )

    def _checked(self, site: str, answer: Answer, check: Callable[[str, Reply], None]) -> Answer:
        if isinstance(answer, CadpError):
            return answer
        try:
            check(site, answer)
        except CadpError as error:
            return error
        except Exception as error:  # a reply is untrusted: whatever it breaks, it must not break the run
            _log.exception("The reply of %s cannot be read", site)
            return ExchangeError(f"A reply has the form that was asked for. This one broke its reader: {error!r:.200}.")
        return answer

    def note_missing(self, site: str, phase: str, reason: str) -> None:
        """Note that a site did not answer in a phase; the first reason stands."""
        if not any(gap.site == site and gap.phase == phase for gap in self.missing):
            self.missing.append(Missing(site, phase, reason))


def _check_came_again(before: Exchange, replies: Mapping[str, Reply], lost: Mapping[str, str]) -> None:
    """Check that every answer which was used in a round came again: what was asked since depends on all of them.

    Raises:
        FederationError: one did not.
    """
    for site in before.used:
        if site not in replies:
            reason = lost.get(site, "it is not connected")
            raise FederationError(
                f"A run goes on from the answers that it used before it was interrupted. That of '{site}' in "
                f"'{before.phase}', round {before.round}, does not come again: {reason}. Resume the run when the site "
                "is back, or start a new run, which spends again."
            )
