"""A site's release without a federation: the same `Site`, asked by hand.

The records are those that a simulation deals to one of its sites, or the training records of a real site or of a
MedMNIST file. The bundle is that of the federation, byte for byte, where the noise is seeded and all else is the same.
"""

import os
import secrets
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cadp_fl.data.units import PATIENTS_CAUTION, Units, has_shared_patients
from cadp_fl.errors import BudgetError, CadpError, InputError, UnprotectedModelError
from cadp_fl.federated.methods.cadp import Cadp
from cadp_fl.federated.methods.cadp_given_flow import CadpGivenFlow
from cadp_fl.federated.methods.parts.plain_flow import declared_public
from cadp_fl.federated.methods.parts.releasing import release_request
from cadp_fl.flow.storage import load_flow
from cadp_fl.outputs import check_new, folder_above
from cadp_fl.privacy.accounting import has_delta
from cadp_fl.privacy.budget import Budget
from cadp_fl.privacy.claims import (
    FLOW_OF_PRIVATE_RECORDS,
    Scope,
    claim_of,
    compose_plans,
    format_delta,
    format_epsilon,
    plan_among,
    plan_beside,
)
from cadp_fl.privacy.events import GaussianHistogram
from cadp_fl.privacy.mechanisms import is_labelled
from cadp_fl.release.manifest import Manifest, manifest_from_json
from cadp_fl.release.privatize import calibrated, check_release, release_directions, released_dims
from cadp_fl.report.statement import assumptions, caution_on_flow, not_covered, statement_of_method
from cadp_fl.site.audit_log import describe_error
from cadp_fl.site.class_counts import COUNT_DOUBT
from cadp_fl.site.protocol import Reply, Request
from cadp_fl.site.requests import DIRECTIONS, CountRequest, ReserveRequest
from cadp_fl.site.site import Site
from cadp_fl.standalone.release_inputs import ReleaseInputs, ReleaseOptions, counts_are_noised, release_inputs_of
from cadp_fl.weights import get_weights

__all__ = ["NO_LEDGER", "MadeRelease", "check_counts_can_show_classes", "make_release"]

NO_LEDGER = (
    "This command keeps no ledger across calls: another release of the same records composes with this one (epsilons "
    "and deltas add), and nothing here counts it. With --policy and --ledger, a site's ledger does."
)

REVIEW = (
    "The policy asks for review: look at the bundle before you hand it on. It lies in this folder alone, and no server "
    "can fetch it from here."
)


@dataclass(frozen=True)
class MadeRelease:
    """A bundle, and what may be claimed of it.

    Attributes:
        folder: of the bundle.
        manifest: of the bundle.
        statement: the guarantee in words, if nothing else is computed from the records.
        caution: what speaks against it, or nothing.
        composition: what all releases cost together by the durable ledger, or that there is none.
        assumptions: of the claim.
        not_covered: what no claim covers.
    """

    folder: Path
    manifest: Manifest
    statement: str
    caution: str
    composition: str
    assumptions: tuple[str, ...]
    not_covered: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the release as plain JSON values."""
        return {
            "bundle": str(self.folder),
            "manifest": self.manifest.model_dump(mode="json"),
            "statement": self.statement,
            "caution": self.caution,
            "composition": self.composition,
            "assumptions": list(self.assumptions),
            "not_covered": list(self.not_covered),
        }


def make_release(flow_file: Path, data: Path, output: Path, options: ReleaseOptions) -> MadeRelease:
    """Privatize what one site contributes with a stored flow, and write the bundle.

    The method is `cadp` if the flow is declared public, and `cadp-given-flow` otherwise; the claim follows from that.
    With a policy and a durable ledger the plan is held against both, and what is asked again is a new plan: it adds.

    Args:
        data: a study config (.yaml, .yml), of which `options.site` names a site, a real site's folder, or a MedMNIST
            file (.npz).
        output: folder of the bundle.

    Raises:
        InputError: something that was given is wrong; nothing was computed.
        PrivacyError: the site refuses.
    """
    check_new(output, "A bundle")
    flow, card = load_flow(flow_file)
    terms = release_inputs_of(data, card, options)
    release = terms.release
    budget = Budget.of(terms.budget, release.labels, is_labelled=is_labelled(release.mechanism))
    check_release(
        release.mechanism,
        release.shrinkage,
        released_dims(release, flow),
        flow.dims,
        labels=release.labels,
        attributes=len(card.dataset.attributes),
    )
    counts = budget.count_events() if counts_are_noised(terms.policy) else ()
    check_counts_can_show_classes(terms, counts)
    mechanism, labels = calibrated(release, budget, counts)
    is_public = card.trained_on == "public" and terms.public_flow
    if not (is_public or terms.policy.unprotected):
        raise UnprotectedModelError(
            "A release by hand takes a flow that no record of this site had a part in: this ledger has no event that "
            "another one was made of. Found one whose file says that it was trained on private records, with privacy "
            "or without; take a public one, or release within the study that made it."
        )
    plan = budget.plan(
        Cadp.name if is_public else CadpGivenFlow.name,
        (declared_public(flow, card) if is_public else FLOW_OF_PRIVATE_RECORDS, *counts, *labels, mechanism.event()),
        run=secrets.token_hex(8) if terms.mode.is_durable else "",
    )
    if terms.mode.is_real and not has_delta(plan.events):
        plan = replace(plan, delta=0.0)
    requests = [Request("reserve", ReserveRequest(plans=(plan.to_json(),)).model_dump(mode="json"))]
    requests += [
        Request("count", CountRequest(method=plan.method, event=event).model_dump(mode="json")) for event in counts
    ]
    settings = release_request(plan.method, release, mechanism, flow, card, *labels)
    directions = release_directions(release, flow)
    turned = {} if directions is None else {DIRECTIONS: directions.matrix}
    requests.append(Request("release", settings.model_dump(mode="json"), get_weights(flow) | turned))
    manifest = _release(terms, plan.run, requests, output)
    (kept,) = (each for each in terms.ledger.plans() if each.key == plan.key)  # with the conditions of the site
    claim, own = claim_of(plan_beside(kept, terms.ledger) if terms.mode.is_real else kept), claim_of(kept)
    statement = statement_of_method(
        plan.method, claim, noise=terms.noise.kind, relation=manifest.claim.relation, own=own
    )
    attributes = terms.data.train.schema.attributes
    scope = Scope(terms.budget.unit, terms.budget.records_per_unit, release.labels, attributes)
    return MadeRelease(
        folder=output,
        manifest=manifest,
        statement=statement,
        caution=" ".join(line for line in (caution_on_flow(plan, terms.origin), _caution_on_patients(terms)) if line),
        composition=" ".join([_composition(terms), *([REVIEW] if terms.policy.review else [])]),
        assumptions=tuple(assumptions(scope, sampled=False)),
        not_covered=tuple(not_covered(scope)),
    )


def _caution_on_patients(terms: ReleaseInputs) -> str:
    """Return that the unit is a record where patients have several, or nothing. For the steward's eyes alone."""
    return PATIENTS_CAUTION if terms.budget.unit == "record" and has_shared_patients(terms.data.train) else ""


def _composition(terms: ReleaseInputs) -> str:
    """Return what this release and all before it cost together, or that nothing counts that."""
    if not terms.mode.is_durable:
        return NO_LEDGER
    ledger, policy = terms.ledger, terms.policy
    carried_out, declared, one_budget = ledger.carried_out(), ledger.declared(), ledger.one_budget
    together = compose_plans(
        [
            plan_among(plan, carried_out, declared=declared, one_budget=one_budget)
            for plan, _ in carried_out
            if plan.split == "train" or one_budget
        ]
    )
    if together.epsilon is None or together.delta is None:
        unprotected = "; ".join(together.unprotected)
        return f"All plans of the ledger together have no bound, since this left unprotected: {unprotected}."
    return (
        f"All plans of the ledger together: epsilon {format_epsilon(together.epsilon)} of the policy's "
        f"{policy.epsilon:g} and delta {format_delta(together.delta)} of {policy.delta:g}, for population "
        f"'{policy.population}'."
    )


def check_counts_can_show_classes(terms: ReleaseInputs, counts: Sequence[GaussianHistogram]) -> None:
    """Check, before anything is spent, that noised class counts could show what the policy asks of them.

    Raises:
        InputError: their noise is as large as the classes are on average; only public numbers are looked at.
    """
    policy, classes = terms.policy, len(terms.data.train.schema.classes)
    for event in counts:
        units = len(Units.of(terms.data.train, policy.unit, policy.records_per_unit))
        doubt = COUNT_DOUBT * event.noise_std / policy.records_per_unit
        if doubt + policy.min_class_units > units / classes:
            raise InputError(
                f"Noised counts show that a class has {policy.min_class_units} units (policy: min_class_units), give "
                f"or take {doubt:.0f} at this budget. With {units} units in {classes} classes they cannot; declare "
                "class_counts in the policy, set min_class_units: 0, or spend more."
            )


def _release(terms: ReleaseInputs, run: str, requests: Sequence[Request], output: Path) -> Manifest:
    """Let the site answer the requests, of which the last is for the release, and move that to its folder."""
    with folder_above(output), tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as outbox:
        site = Site(
            terms.name,
            terms.data,
            ledger=terms.ledger,
            noise=terms.noise.child("site", terms.name),
            device=terms.device,
            outbox=Path(outbox),
            simulation=not terms.mode.is_real,
            policy=terms.policy,
        )
        for asked in requests:
            request = replace(asked, run=run, id=f"{run}/{asked.action}" if run else "")
            try:
                reply = _call(site, request, terms, output)
            except BudgetError as error:
                raise InputError(str(error)) from error
        manifest = manifest_from_json(str(reply.content["manifest"]))
        (Path(outbox) / manifest.event_id).rename(output)
    return manifest


def _call(site: Site, request: Request, terms: ReleaseInputs, output: Path) -> Reply:
    """Return a site's answer once it is in the audit log, as that of its agent would be."""
    if terms.audit is None:
        return site.call(request)
    start, outcome = time.monotonic(), "answered"
    details = {
        "by": "hand",
        "peer": {"pid": os.getpid(), "uid": os.getuid(), "gid": os.getgid()},
        "action": request.action,
        "run": request.run,
        "id": request.id,
        "method": request.settings.get("method", ""),
        **({"output": str(output.absolute())} if request.action == "release" else {}),
    }
    try:
        return site.call(request)
    except Exception as error:
        outcome = "refused" if isinstance(error, CadpError) else "failed"
        details |= describe_error(error)
        raise
    finally:
        terms.audit.write("request", outcome=outcome, **details, seconds=round(time.monotonic() - start, 3))
