"""A site's release without a federation: the same `Site`, asked by hand.

The records are those that a simulation deals to one of its sites, or all training records of a MedMNIST file. The
bundle is that of the federation, byte for byte, where the noise is seeded and all else is the same.
"""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cadp_fl.config import BudgetConfig, DataConfig, ReleaseConfig, load_study, parse
from cadp_fl.data.medmnist import read_medmnist
from cadp_fl.data.partition import SiteData, deal
from cadp_fl.data.schema import Dataset
from cadp_fl.data.sources import load_source
from cadp_fl.device import resolve_device
from cadp_fl.errors import BudgetError, InputError
from cadp_fl.federated.methods.cadp import Cadp, CadpGivenFlow, declared_public, release_request
from cadp_fl.flow.storage import FlowCard, check_fits_records, load_flow
from cadp_fl.outputs import check_new
from cadp_fl.privacy.claims import PRIVATE_FLOW, claim_of
from cadp_fl.privacy.ledger import MemoryLedger, Plan
from cadp_fl.privacy.mechanisms import mechanism_type
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.release.manifest import Manifest, manifest_from_json
from cadp_fl.release.privatize import check_release
from cadp_fl.report.statement import statement_of_method
from cadp_fl.site.protocol import Request
from cadp_fl.site.requests import ReserveRequest
from cadp_fl.site.site import Site
from cadp_fl.weights import get_weights

__all__ = ["NO_LEDGER", "MadeRelease", "ReleaseOptions", "make_release"]

NO_LEDGER = (
    "This command keeps no ledger across calls: another release of the same records composes with this one (epsilons "
    "and deltas add), and nothing here counts it. At a deployed site the site's agent does."
)


@dataclass(frozen=True)
class ReleaseOptions:
    """What a caller says of a release. None: as the study says, or the default where there is no study and one exists.

    Attributes:
        site: which site of a study.
        name: pseudonym of the site in the manifest.
        epsilon: of the release, under replace-one.
        delta: at most 1 / (10 n).
        clip_norm: C.
        latent_dims: leading latent dimensions that carry a record.
        mechanism: name of a mechanism.
        shrinkage: name of a shrinkage.
        noise: entropy or seeded.
        seed: of seeded noise.
        device: where to compute.
    """

    site: str | None = None
    name: str | None = None
    epsilon: float | None = None
    delta: float | None = None
    clip_norm: float | None = None
    latent_dims: int | None = None
    mechanism: str | None = None
    shrinkage: str | None = None
    noise: str | None = None
    seed: int | None = None
    device: str | None = None

    def given(self, *names: str) -> dict[str, Any]:
        """Return those of some options that were given."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}


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


@dataclass(frozen=True)
class _Asked:
    """Everything that a release needs beside the flow.

    Attributes:
        origin: name of the data set that the records are from.
        simulation: whether the records are a simulation's.
        public_flow: whether the study, if there is one, lets a flow count as public.
    """

    name: str
    data: SiteData
    origin: str
    release: ReleaseConfig
    budget: BudgetConfig
    noise: NoiseSource
    device: torch.device
    simulation: bool
    public_flow: bool


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
    kinds = {".npz": _of_file, ".yaml": _of_study, ".yml": _of_study}
    if data.suffix not in kinds:
        raise InputError(f"Records are those of a study config (.yaml) or a MedMNIST file (.npz). Found '{data}'.")
    asked = kinds[data.suffix](data, card, options)
    release, budget = asked.release, asked.budget
    check_release(release.mechanism, release.shrinkage, release.latent_dims or flow.dims, flow.dims)
    mechanism = mechanism_type(release.mechanism).calibrated(release.clip_norm, budget.epsilon, budget.delta)
    is_public = card.trained_on == "public" and asked.public_flow
    plan = Plan(
        Cadp.name if is_public else CadpGivenFlow.name,
        (declared_public(flow, card) if is_public else PRIVATE_FLOW, mechanism.event()),
        budget.delta,
    )
    request = Request(
        "release",
        release_request(plan.method, release, mechanism, flow, card).model_dump(mode="json"),
        get_weights(flow),
    )
    manifest = _release(asked, plan, request, output)
    statement = statement_of_method(plan.method, claim_of(plan), noise=asked.noise.kind)
    caution = _caution(asked.origin) if is_public and asked.origin == card.dataset.name else ""
    return MadeRelease(output, manifest, statement, caution)


def _caution(origin: str) -> str:
    return (
        f"CAUTION: the flow says that it was trained on '{origin}', and these records are of '{origin}' too. If a "
        "record is among those that it was trained on, the declaration is wrong for it, and so is the claim."
    )


def _release(asked: _Asked, plan: Plan, request: Request, output: Path) -> Manifest:
    """Let the site reserve the plan and make the release, and move that to its folder."""
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as outbox:
        site = Site(
            asked.name,
            asked.data,
            ledger=MemoryLedger(),
            noise=asked.noise.child("site", asked.name),
            device=asked.device,
            outbox=Path(outbox),
            simulation=asked.simulation,
        )
        try:
            site.call(Request("reserve", ReserveRequest(plan=plan.to_json()).model_dump(mode="json")))
        except BudgetError as error:
            raise InputError(str(error)) from error
        manifest = manifest_from_json(site.call(request).content["manifest"])
        (Path(outbox) / manifest.event_id).rename(output)
    return manifest


def _of_study(path: Path, card: FlowCard, options: ReleaseOptions) -> _Asked:
    """Return a release of one of a study's sites; what is not given is the study's."""
    study = load_study(path)
    torch.set_num_threads(study.sites.cpus_per_client)  # as the federation does: sums are then added up alike
    names = study.sites.site_names
    if options.site not in names:
        raise InputError(
            f"A study has several sites, and --site names one: {', '.join(names[:20])}. Found {options.site or 'none'}."
        )
    given = options.given("clip_norm", "latent_dims", "mechanism", "shrinkage")
    release = parse(ReleaseConfig, study.release.model_dump() | given)
    budget = parse(BudgetConfig, study.budget.model_dump() | options.given("epsilon", "delta"))
    noise = _noise(options.noise or study.noise, options.seed, default_seed=study.seed)
    name = _checked_name(options.name or options.site)
    device = resolve_device(options.device or study.device)
    source = load_source(study.data)
    check_fits_records(source.schema, card)
    sites = deal(source, study.sites.count, study.sites.partition, study.data.test_fraction, seed=study.seed)
    data = sites[names.index(options.site)]
    declared = study.flow.pretrained is None or study.flow.pretrained.trained_on == "public"
    origin = source.schema.name
    return _Asked(name, data, origin, release, budget, noise, device, simulation=True, public_flow=declared)


def _of_file(path: Path, card: FlowCard, options: ReleaseOptions) -> _Asked:
    """Return a release of all training records of a MedMNIST file, under the schema of the flow.

    The schema is public and shared, so that releases of several sites can be pooled: a file's name and its largest
    label are not told.
    """
    if options.site is not None:
        raise InputError(
            f"The records of an npz are one site's. Found --site {options.site}; pass --name for its name."
        )
    required = {"--epsilon": options.epsilon, "--delta": options.delta, "--clip-norm": options.clip_norm}
    if missing := [option for option, value in required.items() if value is None]:
        raise InputError(
            f"A release of a file says its epsilon, delta and clip norm, which have no default. Found no {missing[0]}; "
            "pass it."
        )
    given = options.given("clip_norm", "latent_dims", "mechanism", "shrinkage")
    release = parse(ReleaseConfig, {"labels": "public"} | given)
    budget = parse(BudgetConfig, options.given("epsilon", "delta"))
    noise = _noise(options.noise or "entropy", options.seed, default_seed=None)
    name, device = _checked_name(options.name or "site"), resolve_device(options.device or "auto")
    if not path.is_file():
        raise InputError(f"Records are read from a file. There is none at '{path}'; check the path.")
    train = read_medmnist(
        parse(DataConfig, {"source": "medmnist", "path": path, "classes": card.dataset.classes})
    ).train
    check_fits_records(train.schema, card)
    records = Dataset(card.dataset, train.images, train.labels, train.patients)
    data = SiteData(records, records.select(np.arange(0)))
    origin = train.schema.name
    return _Asked(name, data, origin, release, budget, noise, device, simulation=False, public_flow=True)


def _noise(kind: str, seed: int | None, *, default_seed: int | None) -> NoiseSource:
    """Return the root of a site's entropy source."""
    kinds: dict[str, Literal["entropy", "seeded"]] = {"entropy": "entropy", "seeded": "seeded"}
    if kind not in kinds:
        raise InputError(f"Noise is entropy or seeded. Found '{kind}'.")
    if kinds[kind] == "entropy":
        if seed is not None:
            raise InputError(
                f"A seed is for seeded noise. Found --seed {seed} with noise of the system's entropy; leave it out, or "
                "pass --noise seeded, which protects nothing."
            )
        return NoiseSource.from_entropy()
    chosen = default_seed if seed is None else seed
    if chosen is None:
        raise InputError("Seeded noise is derived from a seed. Found none; pass --seed.")
    return NoiseSource.from_seed(chosen)


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", name):
        raise InputError(f"A site's name is 1 to 40 lower-case letters, digits and hyphens. Found '{name}'.")
    return name
