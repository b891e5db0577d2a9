"""A site's release without a federation: the same `Site`, asked by hand.

The records are those that a simulation deals to one of its sites, or all training records of a MedMNIST file. The
bundle is that of the federation, byte for byte, where the noise is seeded and all else is the same.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cadp_fl.errors import BudgetError, InputError
from cadp_fl.federated.methods.cadp import Cadp, CadpGivenFlow, declared_public, release_request
from cadp_fl.flow.storage import load_flow
from cadp_fl.outputs import check_new
from cadp_fl.phases.terms import ReleaseOptions, Terms, terms_of
from cadp_fl.privacy.budget import Budget
from cadp_fl.privacy.claims import PRIVATE_FLOW, claim_of
from cadp_fl.privacy.ledger import MemoryLedger, Plan
from cadp_fl.privacy.mechanisms import mechanism_type
from cadp_fl.privacy.policy import open_policy
from cadp_fl.release.manifest import Manifest, manifest_from_json
from cadp_fl.release.privatize import check_release
from cadp_fl.report.statement import caution_on_flow, statement_of_method
from cadp_fl.site.protocol import Request
from cadp_fl.site.requests import ReserveRequest
from cadp_fl.site.site import Site
from cadp_fl.weights import get_weights

__all__ = ["NO_LEDGER", "MadeRelease", "make_release"]

NO_LEDGER = (
    "This command keeps no ledger across calls: another release of the same records composes with this one (epsilons "
    "and deltas add), and nothing here counts it. At a deployed site the site's agent does."
)


@dataclass(frozen=True)
class MadeRelease:
    """A bundle, and what may be claimed of it.

    Attributes:
        folder: of the bundle.
        manifest: of the bundle.
        statement: the guarantee in words, if nothing else is computed from the records.
        caution: what speaks against it, or nothing.
    """

    folder: Path
    manifest: Manifest
    statement: str
    caution: str

    def to_json(self) -> dict[str, Any]:
        """Return the release as plain JSON values."""
        return {
            "bundle": str(self.folder),
            "manifest": self.manifest.model_dump(mode="json"),
            "statement": self.statement,
            "caution": self.caution,
            "composition": NO_LEDGER,
        }


def make_release(flow_file: Path, data: Path, output: Path, options: ReleaseOptions) -> MadeRelease:
    """Privatize every training record of one site with a stored flow, and write the bundle.

    The method is `cadp` if the flow is declared public, and `cadp-given-flow` otherwise; the claim follows from that.

    Args:
        data: a study config (.yaml, .yml), of which `options.site` names a site, or a MedMNIST file (.npz).
        output: folder of the bundle.

    Raises:
        InputError: something that was given is wrong; nothing was computed.
        PrivacyError: the site refuses.
    """
    check_new(output, "A bundle")
    flow, card = load_flow(flow_file)
    terms = terms_of(data, card, options)
    release, budget = terms.release, Budget.of(terms.budget, terms.labels)
    attributes = len(card.dataset.attributes)
    check_release(
        release.mechanism,
        release.shrinkage,
        release.latent_dims or flow.dims,
        flow.dims,
        labels=release.labels,
        attributes=attributes,
    )
    labels = budget.label_events()
    mechanism = mechanism_type(release.mechanism).calibrated(
        release.clip_norm,
        budget.epsilon,
        budget.delta,
        records_per_unit=budget.records_per_unit,
        beside=labels,
    )
    is_public = card.trained_on == "public" and terms.public_flow
    plan = budget.plan(
        Cadp.name if is_public else CadpGivenFlow.name,
        (declared_public(flow, card) if is_public else PRIVATE_FLOW, *labels, mechanism.event()),
    )
    request = Request(
        "release",
        release_request(plan.method, release, mechanism, flow, card, *labels).model_dump(mode="json"),
        get_weights(flow),
    )
    manifest = _release(terms, plan, request, output)
    statement = statement_of_method(
        plan.method, claim_of(plan), noise=terms.noise.kind, relation=manifest.claim.relation
    )
    return MadeRelease(output, manifest, statement, caution_on_flow(plan, terms.origin))


def _release(terms: Terms, plan: Plan, request: Request, output: Path) -> Manifest:
    """Let the site reserve the plan and make the release, and move that to its folder."""
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as outbox:
        site = Site(
            terms.name,
            terms.data,
            ledger=MemoryLedger(),
            noise=terms.noise.child("site", terms.name),
            device=terms.device,
            outbox=Path(outbox),
            simulation=terms.simulation,
            policy=open_policy(terms.budget.unit, terms.budget.records_per_patient, terms.labels),
        )
        try:
            site.call(Request("reserve", ReserveRequest(plan=plan.to_json()).model_dump(mode="json")))
        except BudgetError as error:
            raise InputError(str(error)) from error
        manifest = manifest_from_json(site.call(request).content["manifest"])
        (Path(outbox) / manifest.event_id).rename(output)
    return manifest
