"""The terms of one site's release: whose records, which mechanism, at what budget, with which noise.

They come from a study and one of its simulated sites, or from a MedMNIST file and what the caller says of it.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cadp_fl.config import BudgetConfig, PolicyConfig, ReleaseConfig, load_policy, load_study, parse
from cadp_fl.data.medmnist import read_medmnist_as
from cadp_fl.data.partition import SiteData, deal
from cadp_fl.data.schema import Dataset
from cadp_fl.data.sources import load_source
from cadp_fl.device import resolve_device
from cadp_fl.errors import InputError
from cadp_fl.flow.storage import FlowCard, check_fits_records
from cadp_fl.privacy.durable import DurableLedger
from cadp_fl.privacy.ledger import Ledger, MemoryLedger
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.policy import open_policy

__all__ = ["ReleaseOptions", "Terms", "terms_of"]


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
        labels: public or randomized.
        unit: record or patient.
        records_per_patient: m, for the unit patient.
        policy: a real site's policy.yaml; labels and unit are then its own.
        ledger: its durable ledger, which goes with a policy.
        mark: file that remembers how far the ledger has come.
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
    labels: str | None = None
    unit: str | None = None
    records_per_patient: int | None = None
    policy: Path | None = None
    ledger: Path | None = None
    mark: Path | None = None

    def given(self, *names: str) -> dict[str, Any]:
        """Return those of some options that were given."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Terms:
    """Everything that a release needs beside the flow.

    Attributes:
        name: pseudonym of the site.
        data: its records.
        origin: name of the data set that the records are from.
        release: how latents become records.
        budget: of the release.
        noise: root of the site's entropy source.
        device: where to compute.
        policy: what the site allows.
        ledger: where the release is written down.
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
    policy: PolicyConfig
    ledger: Ledger
    simulation: bool
    public_flow: bool


def terms_of(data: Path, card: FlowCard, options: ReleaseOptions) -> Terms:
    """Return the terms of a release of the records that a path names: a study config, or a MedMNIST file.

    Raises:
        InputError: something that was given is wrong, or does not fit the flow.
    """
    kinds = {".npz": _of_file, ".yaml": _of_study, ".yml": _of_study}
    if data.suffix not in kinds:
        raise InputError(f"Records are those of a study config (.yaml) or a MedMNIST file (.npz). Found '{data}'.")
    return kinds[data.suffix](data, card, options)


def _of_study(path: Path, card: FlowCard, options: ReleaseOptions) -> Terms:
    """Return a release of one of a study's sites; what is not given is the study's."""
    if options.policy or options.ledger or options.mark:
        raise InputError(
            "A policy and a ledger are a real site's, and a study's sites are simulated. Found one of them; pass a "
            "MedMNIST file as --data, or leave them out."
        )
    study = load_study(path)
    torch.set_num_threads(study.sites.cpus_per_client)  # as in a federation: sums are added up alike
    names = study.sites.site_names
    if options.site not in names:
        raise InputError(
            f"A study has several sites, and --site names one: {', '.join(names[:20])}. Found {options.site or 'none'}."
        )
    given = options.given("clip_norm", "latent_dims", "mechanism", "shrinkage", "labels")
    release = parse(ReleaseConfig, study.release.model_dump() | given)
    asked = options.given("epsilon", "delta", "unit", "records_per_patient")
    budget = parse(BudgetConfig, study.budget.model_dump() | asked)
    noise = _noise(options.noise or study.noise, options.seed, default_seed=study.seed)
    name = _checked_name(options.name or options.site)
    device = resolve_device(options.device or study.device)
    source = load_source(study.data)
    check_fits_records(source.schema, card)
    sites = deal(source, study.sites.count, study.sites.partition, study.data.test_fraction, seed=study.seed)
    data = sites[names.index(options.site)]
    declared = study.flow.pretrained is None or study.flow.pretrained.trained_on == "public"
    origin = source.schema.name
    policy = open_policy(budget.unit, budget.records_per_patient, release.coverage)
    return Terms(
        name,
        data,
        origin,
        release,
        budget,
        noise,
        device,
        policy,
        MemoryLedger(),
        simulation=True,
        public_flow=declared,
    )


def _of_file(path: Path, card: FlowCard, options: ReleaseOptions) -> Terms:
    """Return a release of all training records of a MedMNIST file, under the schema of the flow.

    The schema is public and shared, so that releases of several sites can be pooled: a file's name and its largest
    label are not told.
    """
    torch.set_num_threads(1)  # networks of this size lose much to more where another process wants the cores
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
    policy, ledger = _site_of(options)
    given = options.given("clip_norm", "latent_dims", "mechanism", "shrinkage", "labels")
    asked = options.given("epsilon", "delta", "unit", "records_per_patient")
    labels = {}
    if policy is not None:
        labels = {"labels": "public" if policy.labels == "public" else "randomized"}
        asked |= {"unit": policy.unit, "records_per_patient": policy.records_per_patient}
    release = parse(ReleaseConfig, {"labels": "public"} | labels | given)
    budget = parse(BudgetConfig, asked)
    policy = policy or open_policy(budget.unit, budget.records_per_patient, release.coverage)
    noise = _noise(options.noise or "entropy", options.seed, default_seed=None)
    name, device = _checked_name(options.name or "site"), resolve_device(options.device or "auto")
    if not path.is_file():
        raise InputError(f"Records are read from a file. There is none at '{path}'; check the path.")
    train = read_medmnist_as(path, card.dataset).train
    check_fits_records(train.schema, card)
    records = Dataset(card.dataset, train.images, train.labels, train.patients, train.attributes)
    data = SiteData(records, records.select(np.arange(0)))
    origin = train.schema.name
    return Terms(
        name,
        data,
        origin,
        release,
        budget,
        noise,
        device,
        policy,
        ledger,
        simulation=False,
        public_flow=True,
    )


def _site_of(options: ReleaseOptions) -> tuple[PolicyConfig | None, Ledger]:
    """Return a real site's policy and its durable ledger; none and one in memory where neither was given.

    Raises:
        InputError: one of them was given without the other.
        LedgerError: the ledger is missing, another population's, or cannot be trusted.
    """
    if options.policy is None and options.ledger is None and options.mark is None:
        return None, MemoryLedger()
    if options.policy is None or options.ledger is None:
        raise InputError("A policy and a ledger go together. Found one of them; pass --policy and --ledger.")
    policy = load_policy(options.policy)
    if options.unit is not None or options.records_per_patient is not None:
        raise InputError("The unit is the policy's. Found --unit or --records-per-patient beside it; leave them out.")
    ledger = DurableLedger.open(
        options.ledger,
        population=policy.population,
        unit=policy.unit,
        records_per_unit=policy.records_per_unit,
        mark=options.mark,
    )
    return policy, ledger


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
