"""What a site has beside its node: settings, policy, permissions, ledger, records, and the agent that runs."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import cadp_fl
from cadp_fl.config import PolicyConfig, SiteConfig, load_policy, load_site
from cadp_fl.data.file_cache import cached_files
from cadp_fl.data.units import Units
from cadp_fl.doctor.finding import Check, Finding, explained, fault, needed, ok, warning
from cadp_fl.doctor.machine import device, memory, permissions_of, room
from cadp_fl.doctor.node import SHARED_CHECKS, Node, answering
from cadp_fl.errors import BudgetError, CohortError
from cadp_fl.mounts import network_file_system
from cadp_fl.privacy.claims import format_epsilon
from cadp_fl.privacy.mark import read_mark
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.policy import check_class_counts
from cadp_fl.site.agent import command
from cadp_fl.site.description import Description
from cadp_fl.site.folder import SiteFolder
from cadp_fl.site.groups import gid_of
from cadp_fl.site.ledger_account import account_of
from cadp_fl.site.open_site import check_name, mark_of, open_ledger, open_site, read_records, records_of
from cadp_fl.site.permissions import open_to_others
from cadp_fl.site.protocol import Request

__all__ = ["SITE_CHECKS", "Site"]

COMMAND_SECONDS = 5.0
FEW_PATHS = 4
NEARLY_FULL = 0.9


class Site(Node):
    """A site's folder, as its agent's user sees it.

    Args:
        place: the folder.
    """

    def __init__(self, place: SiteFolder) -> None:
        super().__init__(place.node)
        self.place = place

    @cached_property
    def settings(self) -> SiteConfig:
        """The site's own settings.

        Raises:
            UnmetError: there are none.
        """
        return needed(lambda: load_site(self.place.config), "site.yaml")

    @cached_property
    def policy(self) -> PolicyConfig:
        """What the steward allows.

        Raises:
            UnmetError: there is none.
        """
        return needed(lambda: load_policy(self.place.policy), "policy.yaml")

    @property
    def mark(self) -> Path:
        """The file that remembers how far the ledger has come."""
        return mark_of(self.place, self.settings)


def _settings(site: Site) -> Iterator[Finding]:
    """Look whether the site's settings can be read, and agree with its node's."""
    site.place.check()
    config = load_site(site.place.config)
    check_name(site.place, config)
    if config.rehearsal is not None:
        yield ok(f"Site '{config.site}', with a rehearsal's public records.")
    else:
        yield ok(f"Site '{config.site}', with records of its own.")


def _policy(site: Site) -> Iterator[Finding]:
    """Look whether the policy can be read, and say what it gives up."""
    allowed = load_policy(site.place.policy)
    yield ok(f"Population '{allowed.population}', unit {allowed.unit}, epsilon {allowed.epsilon:g} in all, for good.")
    evaluation = allowed.evaluation
    exact = evaluation is not None and evaluation.exact
    given_up = {
        "Releases leave without anybody's look.": ("review: true", not allowed.review),
        "What has no privacy at all may leave, as weights that were trained plainly.": (
            "unprotected: false",
            allowed.unprotected,
        ),
        "Noise may come from a seed, which protects nothing: for tests alone.": (
            "seeded_noise: false",
            allowed.seeded_noise,
        ),
        "Exact results on test records may leave: a server that chooses the classifier learns one pixel of a record "
        "that is alone in its class from each.": (
            "exact: false, below evaluation,",
            exact,
        ),
        "Exact results show the labels of test units, though labels are covered: that holds for training units.": (
            "exact: false, below evaluation,",
            exact and allowed.labels == "covered",
        ),
        "An aggregator is trusted with values that have a share of the noise alone.": (
            "aggregator: none",
            allowed.aggregator == "trusted",
        ),
    }
    for what, (other, is_so) in given_up.items():
        if is_so:
            yield warning(what, f"Unless it is meant so: {other} in policy.yaml, then cadp-fl site reload.")


def _files(site: Site) -> Iterator[Finding]:
    """Look who may reach what: the agent's user all, the SuperNode's group its part, and nobody else anything."""
    place, gid = site.place, gid_of(site.settings.group)
    loose, bits = open_to_others(place, site.mark, gid)
    if loose:
        named = ", ".join(f"'{path}'" for path in loose[:FEW_PATHS]) + (" and others" if len(loose) > FEW_PATHS else "")
        yield fault(f"Others may reach {named}.", f"Run chmod {bits} on each, and find out who did.")
    else:
        yield ok("Nobody but this user reaches them" + ("." if gid is None else ", and the group its part alone."))
    shared = [path for path in (place.node.path, place.node.key, place.socket.parent) if path.exists()]
    if gid is not None and (others := [path for path in shared if path.stat().st_gid != gid]):
        yield fault(
            f"The group of site.yaml cannot enter '{others[0]}'.", f"Run chgrp {site.settings.group} on it and others."
        )
    if gid is None and site.settings.data is not None:
        yield warning(
            "The SuperNode has no user of its own: what a server sends can read whatever the agent can.",
            "Make the folder with cadp-fl site init --group, for a user that cannot read the records.",
        )
    source = site.settings.data.path if site.settings.data is not None else None
    if source is not None and source.exists() and permissions_of(source) & 0o007:
        yield warning(
            f"Everybody on this machine may reach the records, '{source}': the SuperNode's user too.", "chmod o-rwx it."
        )


def _ledger(site: Site) -> Iterator[Finding]:
    """Look whether the ledger is whole, is the policy's, and agrees with its mark; and what is left of the budget."""
    if (system := network_file_system(site.place.ledger)) is not None:
        yield warning(
            f"It lies on a file system of the network ({system}), whose locks and log SQLite cannot rely on.",
            "Stop the agent, and move the site's folder to a disk of this machine.",
        )
    account = account_of(site.place.ledger, mark=site.mark, policy=site.policy)
    last, marked = account["entries"] - 1, read_mark(site.mark).number
    said = f"Whole: {account['entries']} entries of population '{account['population']}'"
    if marked < last:
        yield warning(f"{said}; its mark remembers entry {marked} of {last}.", "Nothing: a crash came before the rest.")
    else:
        yield ok(f"{said}, and its mark agrees.")
    for what, count, most in (
        ("plans", len(account["plans"]), site.policy.most_plans),
        ("entries", account["entries"], site.policy.most_entries),
    ):
        if count >= NEARLY_FULL * most:
            yield warning(
                f"It has {count} of the {most} {what} that it takes.",
                f"Find out who reserves so many; or raise most_{what} in policy.yaml, then cadp-fl site reload.",
            )
    for units, total in account["totals"].items():
        if (limit := total["limit"]) is None:
            continue
        left = max(0.0, limit["epsilon"] - total["epsilon"])
        spent = f"{units}ing" if units == "train" else units
        said = f"On {spent} units epsilon {format_epsilon(total['epsilon'])} of {limit['epsilon']:g} is promised"
        if left <= 0 or total["delta"] >= limit["delta"]:
            yield warning(f"{said}: nothing is left.", "No study can follow on this population.", "budget")
        else:
            yield ok(f"{said}; delta {total['delta']:.3g} of {limit['delta']:g}.", "budget")
    if account["unprotected"]:
        yield warning(
            "Something without privacy has left: no total bounds what is known of these records.",
            "Nothing takes it back; cadp-fl site ledger show says what it was.",
            "budget",
        )


def _records(site: Site) -> Iterator[Finding]:
    """Look whether the records can be read, and fit the policy, as the agent will find them."""
    allowed, source = site.policy, read_records(site.settings)
    ledger = open_ledger(site.place, site.settings, allowed)
    data = records_of(ledger, site.settings, source)
    train, test = (
        len(Units.of(records, allowed.unit, allowed.records_per_unit)) for records in (data.train, data.test)
    )
    schema = source.schema
    yield ok(
        f"{train} training and {test} test units ({allowed.unit}), {len(schema.classes)} classes, labels "
        f"{allowed.labels}. {ledger.terms.sides.in_words}"
    )
    for note in source.notes:
        yield ok(note)
    yield from _decoded(site)
    if ledger.terms.one_budget:
        yield warning(
            "The ledger does not say who was tested on (its format is 1): nobody is from now on, and what was given "
            "out about test units counts for training units too.",
            "Nothing: no later version can know.",
        )
    if allowed.evaluation is not None and not test:
        yield warning(
            "The policy allows evaluations, and there are no test units: each is refused.",
            "Remove evaluation from policy.yaml, then cadp-fl site reload.",
            "policy",
        )
    opened = None
    try:
        # Noise that is never drawn from, and no answer that is kept: describing spends nothing.
        opened = open_site(site.place, site.settings, allowed, source, noise=NoiseSource.from_entropy())
    except BudgetError as error:
        yield explained(error, "policy")
    if train < allowed.min_units:
        yield fault(
            f"The site has {train} training units, and takes part with {allowed.min_units}.",
            "Lower min_units in policy.yaml, if that is meant, then cadp-fl site reload.",
            "policy",
        )
    if opened is None:
        return
    description = Description.model_validate(opened.call(Request("describe")).content)
    if description.class_counts is not None or allowed.class_counts is not None:  # counts are public, by the policy
        try:
            check_class_counts(allowed, description.class_counts, description.dataset.classes)
        except CohortError as error:
            yield explained(error, "policy")


def _decoded(site: Site) -> Iterator[Finding]:
    """Count the images that were decoded and kept: a second copy of private records."""
    cache = site.settings.data.cache if site.settings.data is not None else None
    if not isinstance(cache, Path) or not (files := cached_files(cache)):
        return
    size = sum(file.stat().st_size for file in files) / (1 << 20)
    yield ok(
        f"Decoded images are kept in '{cache}': {len(files)} file{'' if len(files) == 1 else 's'}, {size:.1f} MiB, a "
        "second copy of the records. cadp-fl data clear-cache removes it, and data.cache: off keeps none."
    )
    if any(permissions_of(file) & 0o077 for file in files):
        yield fault("Others may read the decoded images.", f"Run chmod 600 on the files in '{cache}'.")


def _agent(site: Site) -> Iterator[Finding]:
    """Look whether the agent runs, and ask it for a dummy round by the socket that the SuperNode uses."""
    status = command(site.place, "status", timeout=COMMAND_SECONDS)
    if not status["policy_in_force"]:
        yield fault(
            "policy.yaml was edited since the agent read it: every request is refused.",
            "Put it into force with cadp-fl site reload, or put the old one back.",
        )
        return
    if (busy := status["busy_with"]) is not None:
        yield ok(f"It runs (process {status['pid']}, cadp-fl {status['library']}), and is at '{busy['action']}'.")
        return
    yield answering(site)


def _device(site: Site) -> Iterator[Finding]:
    yield from device(site.settings.device)


def _python(_site: Site) -> Iterator[Finding]:
    yield ok(f"cadp-fl {cadp_fl.__version__}.")


def _room(site: Site) -> Iterator[Finding]:
    yield from room(site.place.path)
    if site.mark.parent != site.place.path:
        yield from room(site.mark.parent)


SITE_CHECKS = (
    Check("version", _python),
    Check("memory", lambda _site: memory()),
    Check("disk", _room),
    Check("site.yaml", _settings),
    Check("device", _device),
    Check("policy", _policy),
    Check("files", _files),
    Check("ledger", _ledger),
    Check("records", _records),
    Check("agent", _agent),
    *SHARED_CHECKS,
)
"""What the agent's user can look at."""
