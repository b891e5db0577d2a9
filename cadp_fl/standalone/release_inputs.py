"""The terms of one site's release: whose records, which mechanism, at what budget, with which noise.

They come from a study and one of its simulated sites, from a real site's folder, or from a MedMNIST file and what the
caller says of it.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import cadp_fl
from cadp_fl.config import BudgetConfig, PolicyConfig, ReleaseConfig, load_site, load_study, parse
from cadp_fl.config.names import NAME
from cadp_fl.data.holdout import sides
from cadp_fl.data.medmnist import read_medmnist_as
from cadp_fl.data.partition import SiteData, deal_to_sites
from cadp_fl.data.schema import Dataset, Schema, Source
from cadp_fl.data.sources import load_source
from cadp_fl.data.table import read_rows
from cadp_fl.data.table_schema import table_schema_for
from cadp_fl.data.units import Units
from cadp_fl.device import resolve_device
from cadp_fl.errors import EditedPolicyError, InputError
from cadp_fl.flow.storage import FlowCard, check_fits_records
from cadp_fl.privacy.durable import DurableLedger
from cadp_fl.privacy.ledger import Ledger, MemoryLedger
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.policy import check_totals, open_policy
from cadp_fl.site.agent import check_in_force
from cadp_fl.site.audit_log import AuditLog, describe_error
from cadp_fl.site.folder import SiteFolder
from cadp_fl.site.mode import Mode
from cadp_fl.site.open_site import open_ledger, read_records, records_of
from cadp_fl.site.policy_file import read_policy
from cadp_fl.site.register import check_sides

__all__ = ["ReleaseOptions", "ReleaseInputs", "counts_are_noised", "release_inputs_of"]

_FREE = ("--delta", True)
_NO_DELTA = 1e-12
"""Of the budget of a release whose noise has no delta, so that none is claimed: a budget has one."""


@dataclass(frozen=True)
class ReleaseOptions:
    """What a caller says of a release. None: as the study says, or the default where there is no study and one exists.

    Attributes:
        site: which site of a study.
        name: pseudonym of the site in the manifest.
        epsilon: of the release, under replace-one.
        delta: at most 1 / (10 n); Laplace noise has none.
        clip_norm: C.
        latent_dims: leading latent dimensions that carry a record.
        mechanism: name of a mechanism.
        shrinkage: name of a shrinkage.
        noise: entropy or seeded.
        seed: of seeded noise.
        device: where to compute.
        labels: public or covered.
        unit: record or patient.
        records_per_patient: m, for the unit patient.
        policy: a real site's policy.yaml; labels and unit are then its own.
        ledger: its durable ledger, which goes with a policy.
        mark: file that remembers how far the ledger has come.
        columns: schema file of a table, where it is not written as an export is.

    A real site's folder holds its policy, ledger and mark; none is then given.
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
    columns: Path | None = None

    def given(self, *names: str) -> dict[str, Any]:
        """Return those of some options that were given."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class ReleaseInputs:
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
        mode: of the site that makes it.
        public_flow: whether the study, if there is one, lets a flow count as public.
        audit: log of what is done with a durable ledger; None without one.
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
    mode: Mode
    public_flow: bool
    audit: AuditLog | None = None


def release_inputs_of(data: Path, card: FlowCard, options: ReleaseOptions) -> ReleaseInputs:
    """Return the terms of a release of the records that a path names: a study config, a file, or a site's.

    Raises:
        InputError: something that was given is wrong, or does not fit the flow.
        EditedPolicyError: a site's policy was edited, and does not hold yet.
        LedgerError: its ledger is missing, another population's, or cannot be trusted.
    """
    is_study, is_table = data.suffix in (".yaml", ".yml"), card.dataset.kind == "row"
    if options.columns is not None and (not is_table or is_study or data.is_dir()):
        raise InputError(
            f"A schema file says how the table that --data names is written. Found '{options.columns}' with something "
            "else; leave --columns out."
        )
    if data.is_dir():
        return _of_site(data, card, options)
    if is_study:
        return _of_study(data, card, options)
    if not is_table and data.suffix != ".npz":
        raise InputError(
            "Records are those of a study config (.yaml) or a MedMNIST file (.npz), or a site's folder; of a flow for "
            f"rows, those of a CSV or Parquet file. Found '{data}'."
        )
    return _of_file(data, card, options)


def counts_are_noised(policy: PolicyConfig) -> bool:
    """Return whether a policy asks for noised counts of classes, which have a delta, before a release."""
    return policy.min_class_units > 0 and policy.class_counts is None


def _of_study(path: Path, card: FlowCard, options: ReleaseOptions) -> ReleaseInputs:
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
    sites = deal_to_sites(study, source)
    data = sites[names.index(options.site)]
    declared = study.flow.pretrained is None or study.flow.pretrained.trained_on == "public"
    origin = source.schema.name
    policy = open_policy(budget.unit, budget.records_per_patient, release.labels)
    return ReleaseInputs(
        name=name,
        data=data,
        origin=origin,
        release=release,
        budget=budget,
        noise=noise,
        device=device,
        policy=policy,
        ledger=MemoryLedger(),
        mode=Mode.SIMULATION,
        public_flow=declared,
    )


@dataclass(frozen=True)
class _Real:
    """What a real site has beside its records.

    Attributes:
        policy: what it allows.
        ledger: where the release is written down.
        audit: where every request is.
        folder: of the site; None where policy and ledger lie apart.
    """

    policy: PolicyConfig
    ledger: DurableLedger
    audit: AuditLog
    folder: SiteFolder | None


def _of_site(path: Path, card: FlowCard, options: ReleaseOptions) -> ReleaseInputs:
    """Return a release of the training records of a real site, as its agent would make it."""
    if options.policy or options.ledger or options.mark:
        raise InputError(
            "A site's folder holds its policy, its ledger and where its mark is. Found one of them beside it; leave it "
            "out."
        )
    folder = SiteFolder(path.absolute())
    folder.check()
    config = load_site(folder.config)
    torch.set_num_threads(config.threads)
    real = _opened(folder, options)
    source = read_records(config)
    check_fits_records(source.schema, card)
    data = records_of(real.ledger, config, source)
    named = replace(options, name=options.name or config.site, device=options.device or config.device)
    return _terms(named, real, data, origin=source.schema.name)


def _of_file(path: Path, card: FlowCard, options: ReleaseOptions) -> ReleaseInputs:
    """Return a release of the training records of a MedMNIST file or a table, under the schema of the flow.

    The schema is public and shared, so that releases of several sites can be pooled: a file's name and its largest
    label are not given out. Without a ledger all but the test split are training records; a ledger says who is.
    """
    torch.set_num_threads(1)  # networks of this size lose much to more where another process wants the cores
    real = _site_of(options)
    if not path.is_file():
        raise InputError(f"Records are read from a file. There is none at '{path}'; check the path.")
    _check_own_file(real, path)
    source = _read_as(path, card.dataset, options.columns)
    check_fits_records(source.schema, card)
    if real is not None:
        data = sides(source, real.ledger.terms.sides)
        check_sides(real.ledger, data)
    else:
        data = SiteData(source.train, source.train.select(np.arange(0)))
    under = SiteData(_under(card.dataset, data.train), _under(card.dataset, data.test))
    return _terms(options, real, under, origin=source.schema.name)


def _read_as(path: Path, schema: Schema, columns: Path | None) -> Source:
    if schema.kind == "row":
        return read_rows(path, table_schema_for(schema, columns))
    return read_medmnist_as(path, schema)


def _under(schema: Schema, records: Dataset) -> Dataset:
    return replace(records, schema=schema)


def _check_own_file(real: _Real | None, path: Path) -> None:
    """Check that records are the site's own, where its ledger's rule is about them and not about ids.

    Raises:
        InputError: they are another file's, which may split people in another way.
    """
    if real is None or real.folder is None or real.ledger.terms.sides.rule in ("hash", "none"):
        return
    own = load_site(real.folder.config).data
    if own is None or own.path is None or not own.path.exists() or not own.path.samefile(path):
        raise InputError(
            "Who is tested on at this site stands in its own file, and another file may split people in another way. "
            f"Found '{path}'; pass the site's folder: --data {real.folder.path}."
        )


def _terms(options: ReleaseOptions, real: _Real | None, data: SiteData, *, origin: str) -> ReleaseInputs:
    """Return the terms of a release of a real site's records."""
    if options.site is not None:
        raise InputError(
            f"These records are one site's. Found --site {options.site}, which is for a study; pass --name for a name."
        )
    policy = real.policy if real is not None else None
    is_pure = options.mechanism == "laplace" and (policy is None or not counts_are_noised(policy))
    required = {"--epsilon": options.epsilon, "--delta": options.delta, "--clip-norm": options.clip_norm}
    if missing := [option for option, value in required.items() if value is None and (option, is_pure) != _FREE]:
        raise InputError(
            "A release without a study says its epsilon, delta (if its noise has one) and clip norm, which have no "
            f"default. Found no {missing[0]}; pass it."
        )
    given = options.given("clip_norm", "latent_dims", "mechanism", "shrinkage", "labels")
    asked = options.given("epsilon", "delta", "unit", "records_per_patient")
    asked.setdefault("delta", _NO_DELTA)
    labels = {}
    if policy is not None:
        labels = {"labels": policy.labels}
        asked |= {"unit": policy.unit, "records_per_patient": policy.records_per_patient}
        units = [len(Units.of(part, policy.unit, policy.records_per_unit)) for part in (data.train, data.test)]
        check_totals(policy, units=units[0], test_units=units[1])
    release = parse(ReleaseConfig, {"labels": "public"} | labels | given)
    budget = parse(BudgetConfig, asked)
    return ReleaseInputs(
        name=_checked_name(options.name or "site"),
        data=data,
        origin=origin,
        release=release,
        budget=budget,
        noise=_noise(options.noise or "entropy", options.seed, default_seed=None),
        device=resolve_device(options.device or "auto"),
        policy=policy or open_policy(budget.unit, budget.records_per_patient, release.labels),
        ledger=real.ledger if real is not None else MemoryLedger(),
        mode=Mode.STANDALONE if real is None else Mode.DEPLOYED,
        public_flow=True,
        audit=real.audit if real is not None else None,
    )


def _site_of(options: ReleaseOptions) -> _Real | None:
    """Return a real site's policy and its durable ledger; None where neither was given.

    What lies in a site's folder goes together, and holds as it does for its agent.

    Raises:
        InputError: one of them was given without the other, or with another site's.
        EditedPolicyError: a site's policy was edited, and does not hold yet.
        LedgerError: the ledger is missing, another population's, or cannot be trusted.
    """
    if options.policy is None and options.ledger is None and options.mark is None:
        return None
    if options.policy is None or options.ledger is None:
        raise InputError("A policy and a ledger go together. Found one of them; pass --policy and --ledger.")
    folders = [SiteFolder(file.resolve().parent) for file in (options.ledger, options.policy)]
    own = next((folder for folder in folders if folder.config.is_file()), None)
    if own is None:
        return _opened(None, options)
    for file, ours in ((options.policy, own.policy), (options.ledger, own.ledger)):
        if file.resolve() != ours.resolve():
            raise InputError(
                f"A site's policy and ledger lie in its folder, and go together. Found '{file}' with those of "
                f"'{own.path}'; pass the folder alone: --data {own.path}."
            )
    return _opened(own, options)


def _opened(folder: SiteFolder | None, options: ReleaseOptions) -> _Real:
    """Return a policy that holds, and its ledger; whoever asks is in the audit log before anything is spent."""
    if options.unit is not None or options.records_per_patient is not None:
        raise InputError("The unit is the policy's. Found --unit or --records-per-patient beside it; leave them out.")
    files = options.policy, options.ledger
    policy_file, ledger_file = (folder.policy, folder.ledger) if folder is not None else files
    assert policy_file is not None, "it goes with the ledger"
    assert ledger_file is not None, "it goes with the policy"
    audit = AuditLog(SiteFolder(ledger_file.resolve().parent).audit)
    policy, sha256 = read_policy(policy_file)
    if folder is not None:
        try:
            check_in_force(folder, sha256)
        except EditedPolicyError as error:
            audit.write("by-hand", outcome="refused", policy=sha256, uid=os.getuid(), **describe_error(error))
            raise
        config = load_site(folder.config)
        if options.mark is not None:
            config = config.model_copy(update={"mark": options.mark})
        ledger = open_ledger(folder, config, policy)
    else:
        ledger = DurableLedger.open(
            ledger_file,
            population=policy.population,
            unit=policy.unit,
            records_per_unit=policy.records_per_unit,
            mark=options.mark,
        )
    audit.write("by-hand", library=cadp_fl.__version__, policy=sha256, uid=os.getuid())
    return _Real(policy, ledger, audit, folder)


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
    if not re.fullmatch(NAME, name):
        raise InputError(f"A site's name is 1 to 40 lower-case letters, digits and hyphens. Found '{name}'.")
    return name
