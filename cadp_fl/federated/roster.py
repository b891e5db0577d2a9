"""Who takes part in a study: its nodes, what each of them says that it is, and whether they fit together.

In a simulation every node is a site, and says its name. Real sites are known by the names that their nodes were
registered under at the coordinator: no other node is asked anything, and none takes another's name.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic import ValidationError

import cadp_fl
from cadp_fl.config import StudyConfig
from cadp_fl.data.fingerprint import Fingerprint
from cadp_fl.data.schema import Schema
from cadp_fl.errors import CadpError, ExchangeError, FederationError
from cadp_fl.federated.basis import MOST_NAMED, differences
from cadp_fl.federated.federation import Federation, Missing
from cadp_fl.privacy.plan import Plan
from cadp_fl.site.description import Description
from cadp_fl.site.protocol import Reply, Request
from cadp_fl.site.requests import MOST_PLANS, DescribeRequest

__all__ = ["Gathered", "gather"]

NOT_CONNECTED = "no node of that name is connected"


class Gathered(NamedTuple):
    """What came back.

    Attributes:
        described: what each site that answered says of itself, by its name.
        records: in a simulation, the fingerprint of each site's records.
        refusals: of real sites, why one would refuse the study's plans.
    """

    described: dict[str, Description]
    records: dict[str, Fingerprint]
    refusals: dict[str, CadpError]


def gather(
    study: StudyConfig,
    federation: Federation,
    known: Mapping[str, Description],
    plans: Sequence[Plan] = (),
) -> Gathered:
    """Ask every node what it is, freeze the federation's roster, and check that the sites fit together.

    Args:
        study: the config.
        federation: whose roster is filled.
        known: what the sites said when the run began, if it is resumed over real sites: those alone take part.
        plans: of the study; each real site says whether it would refuse one of them.

    Raises:
        FederationError: the nodes are not the study's, too few of them answer, or two sites do not fit.
    """
    gathered = (
        _describe_named(study, federation, known, plans) if federation.is_deployed else _describe_all(study, federation)
    )
    federation.traffic = {}
    federation.recorder.round("describe", 1, 1)
    return gathered


def _describe_named(
    study: StudyConfig, federation: Federation, known: Mapping[str, Description], plans: Sequence[Plan]
) -> Gathered:
    """Ask the nodes that are registered under the study's names."""
    names = sorted(known or study.sites.site_names)
    nodes = [node for node in federation.transport.nodes(len(names), names) if node.name in names]
    for node in nodes:
        if sum(other.name == node.name for other in nodes) > 1:
            raise FederationError(
                f"Every site has one node. Two that are registered as '{node.name}' are connected; remove one "
                "(cadp-fl coordinator remove)."
            )
    federation.roster = {node.name: node.id for node in nodes}
    for name in names:
        if name not in federation.roster:
            federation.note_missing(name, "describe", NOT_CONNECTED)
    described: dict[str, Description] = {}
    refusals: dict[str, CadpError] = {}

    def check(site: str, reply: Reply) -> None:
        description = _description(reply)
        if description.site != site:
            raise ExchangeError(
                f"A site has the name that its node is registered under. That of node '{site}' says that it is "
                f"'{description.site}'; make the two agree."
            )
        if site in known:
            _check_unchanged(description, known[site])
        described[site] = description
        if isinstance(code := reply.content.get("refuses"), int):
            refusals[site] = CadpError.named(code)

    settings = DescribeRequest(plans=tuple(plan.to_json() for plan in plans[:MOST_PLANS])).model_dump(mode="json")
    replies = federation.ask(Request("describe", settings), phase="describe", check=check)
    federation.roster = {site: federation.roster[site] for site in replies}
    _check_fit(study, list(described.values()))
    return Gathered(described, {}, refusals)


def _describe_all(study: StudyConfig, federation: Federation) -> Gathered:
    """Ask all nodes, as many as the study has sites."""
    nodes = federation.transport.nodes(study.sites.count)
    if len(nodes) != study.sites.count:
        raise FederationError(
            f"The study has {study.sites.count} sites, one a node. Found {len(nodes)} nodes; start as many nodes as "
            f"sites (flwr run: --federation-config 'num-supernodes={study.sites.count}')."
        )
    node_of = {f"node-{node.id}": node.id for node in nodes}
    federation.roster = node_of
    described: dict[str, Description] = {}
    records: dict[str, Fingerprint] = {}

    def check(placeholder: str, reply: Reply) -> None:
        described[placeholder] = description = _description(reply)
        if (fingerprint := _fingerprint(reply)) is not None:
            records[description.site] = fingerprint

    replies = federation.ask(Request("describe"), phase="describe", check=check)
    descriptions = [described[placeholder] for placeholder in replies]
    _check_fit(study, descriptions)
    silent = sorted(set(study.sites.site_names) - {each.site for each in descriptions})
    # A node that said nothing did not say which site it is, so the reasons of all such nodes stand for each.
    reasons = "; ".join(sorted({gap.reason for gap in federation.missing}))
    federation.missing = [Missing(site, "describe", reasons) for site in silent]
    federation.roster = {described[placeholder].site: node_of[placeholder] for placeholder in replies}
    return Gathered({each.site: each for each in descriptions}, records, {})


def _description(reply: Reply) -> Description:
    try:
        return Description.model_validate(dict(reply.content))
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ExchangeError(f"A site describes itself by the schema. Field '{field}' is wrong.") from error


def _fingerprint(reply: Reply) -> Fingerprint | None:
    """Return the fingerprint of a simulated site's records; None of a real site's, which makes none."""
    shown = reply.content.get("simulation_only")
    if shown is None:
        return None
    try:
        return Fingerprint.model_validate(shown["records"])
    except (KeyError, TypeError, ValidationError) as error:
        raise ExchangeError(
            "A simulated site sends a fingerprint of its records. Found something else; compare the versions."
        ) from error


def _check_unchanged(now: Description, then: Description) -> None:
    """Check that a site is what it was when the run began: what was asked of all sites depends on it.

    Raises:
        ExchangeError: it is not.
    """
    after, before = (each.model_dump(mode="json", exclude={"library"}) for each in (now, then))
    changed = [f"{key} is {value!s:.60} now and was {old!s:.60}" for key, value, old in differences(after, before)]
    if changed:
        raise ExchangeError(
            f"A run goes on with the sites that it began with. Of '{now.site}' {', '.join(changed[:MOST_NAMED])}; "
            "bring the earlier records and policy back, or start a new run."
        )


def _check_fit(study: StudyConfig, descriptions: list[Description]) -> None:
    """Check that sites can work together.

    Raises:
        FederationError: they cannot; the message names the site and the field.
    """
    first = descriptions[0]
    names = [each.site for each in descriptions]
    for each in descriptions:
        if names.count(each.site) > 1:
            raise FederationError(f"Every site has a name of its own. '{each.site}' is there twice; rename one.")
        if _release_line(each.library) != _release_line(cadp_fl.__version__):
            raise FederationError(
                f"Sites and server run the same major.minor version of cadp-fl. Site '{each.site}' has {each.library}, "
                f"the server {cadp_fl.__version__}; update one."
            )
        ours_protects = (study.budget.unit, study.budget.records_per_unit, study.labels)
        if (each.unit, each.records_per_unit, each.labels) != ours_protects:
            raise FederationError(
                f"A study and its sites protect the same. The study: one {ours_protects[0]} of {ours_protects[1]} "
                f"records, labels {ours_protects[2]}; site '{each.site}': one {each.unit} of {each.records_per_unit}, "
                f"labels {each.labels}. Make them agree (budget.unit, release.labels; the site's policy)."
            )
        if each.noise != study.noise:
            raise FederationError(
                f"The study's noise is '{study.noise}'. Site '{each.site}' has noise '{each.noise}'; make them agree. "
                "(A real site draws seeded noise for tests alone, and only if its policy says so.)"
            )
        for field in Schema.model_fields:
            ours, theirs = getattr(first.dataset, field), getattr(each.dataset, field)
            if ours != theirs:
                raise FederationError(
                    f"All sites share one schema. Field '{field}' of site '{each.site}' is {theirs}, that of site "
                    f"'{first.site}' is {ours}; convert the records of one."
                )


def _release_line(library: str) -> list[str]:
    return library.split(".")[:2]
