"""One study from its config file to its run folder."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cadp_fl.classifier.models import check_classifier
from cadp_fl.config import PolicyConfig, StudyConfig, dump_study, load_study
from cadp_fl.data.fingerprint import Fingerprint
from cadp_fl.data.partition import SiteData, check_partition, deal_to_sites
from cadp_fl.data.schema import Source
from cadp_fl.data.sources import load_source
from cadp_fl.data.units import Units
from cadp_fl.device import resolve_device
from cadp_fl.errors import BudgetError, ConfigError, InputError
from cadp_fl.federated.basis import Basis, differences
from cadp_fl.federated.checkpoint import CHECKPOINT, Checkpoint
from cadp_fl.federated.methods import build_methods, check_shapes
from cadp_fl.federated.methods.base import Method, plan_of
from cadp_fl.federated.recorder import Watcher
from cadp_fl.federated.row_defaults import with_defaults_of_rows
from cadp_fl.flow.cinn import check_flow_names
from cadp_fl.outputs import check_unicode
from cadp_fl.privacy.accounting import check_delta
from cadp_fl.privacy.ledger import MemoryLedger
from cadp_fl.privacy.policy import allowance, check_plan
from cadp_fl.release.cohort import with_cohort
from cadp_fl.release.privatize import check_release
from cadp_fl.study.asking import with_numbers_asked
from cadp_fl.study.engine import check_engine
from cadp_fl.study.fidelity import add_fidelity
from cadp_fl.study.plugins import load_plugins
from cadp_fl.study.simulate import simulate
from cadp_fl.study.simulated_sites import ORDERS, OUTBOX

__all__ = [
    "CheckedStudy",
    "check_same_study",
    "check_study",
    "check_text",
    "fingerprints",
    "has_ended",
    "make_run_folder",
    "run_study",
    "settled",
]


class CheckedStudy(NamedTuple):
    """A study that can be run.

    Attributes:
        study: with what its records say of a release's cohort.
        sites: the records of every site.
        methods: with their noise calibrated.
        notes: how the records were read, a sentence each.
    """

    study: StudyConfig
    sites: list[SiteData]
    methods: list[Method]
    notes: tuple[str, ...]


def run_study(
    config: Path, output: Path, overrides: Iterable[str], *, watch: Watcher, resume: bool = False
) -> dict[str, Any]:
    """Simulate a study, fill its run folder, and return its summary.

    Args:
        resume: go on with the run in the folder, from its last finished phase.

    Raises:
        InputError: the config or the folder is wrong; nothing was written.
        CadpError: the run failed.
    """
    study = load_study(config, overrides)
    study, sites, _, notes = check_study(study)
    check_engine(study)
    resolved = output.resolve() / "config.yaml"
    if resume:
        check_same_study(study, resolved)
        if (output / CHECKPOINT).exists():
            Checkpoint.check(output, Basis.of(study), fingerprints(study, sites))
    else:
        make_run_folder(output)
        resolved.write_text(dump_study(study), encoding="utf-8")
    for note in notes:
        watch({"step": "note", "text": note})
    if not (resume and has_ended(output)):
        watch({"step": "start"})
        try:
            simulate(study, resolved, output.resolve(), watch=watch, resume=resume)
            if study.evaluation.fidelity:
                add_fidelity(study, sites, output)
        finally:
            for site in study.sites.site_names:
                shutil.rmtree(output / "sites" / site / OUTBOX, ignore_errors=True)
                shutil.rmtree(output / "sites" / site / ORDERS, ignore_errors=True)
    summary: dict[str, Any] = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    return summary


def make_run_folder(output: Path) -> None:
    """Make the folder of a run.

    Raises:
        InputError: it is in use, or cannot be made.
    """
    check_unicode(output.resolve(), "A run folder")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(
            f"A run folder is new or empty. '{output}' is neither; choose another --output, or go on with an "
            "interrupted run with --resume."
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"A run folder can be made. '{output}' cannot: {error.strerror}; choose another.") from error


def check_same_study(study: StudyConfig, resolved: Path) -> None:
    """Check that an interrupted run is of this study.

    Raises:
        InputError: it is of another one; the message names the first key that differs.
    """
    check_unicode(resolved, "A run folder")
    if not resolved.is_file():
        raise InputError(f"An interrupted run left its config.yaml. '{resolved.parent}' has none; start a new run.")
    ours, theirs = (each.model_dump(mode="json") for each in (study, load_study(resolved)))
    for key, now, then in differences(ours, theirs):
        raise InputError(
            f"A run is resumed with the study that it began with. '{key}' is {now!s:.200} now and was {then!s:.200}; "
            "give the same config and every --set again, or start a new run in another --output."
        )


def fingerprints(study: StudyConfig, sites: Iterable[SiteData]) -> dict[str, Fingerprint]:
    """Return the fingerprint of every site's records, by the site's name."""
    return {name: Fingerprint.of(data) for name, data in zip(study.sites.site_names, sites, strict=True)}


def has_ended(output: Path) -> bool:
    """Return whether a run has ended on its own, so that nothing is left to do."""
    try:
        summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return "failure" not in summary and list(summary["methods"]) == list(load_study(output / "config.yaml").methods)


def check_study(study: StudyConfig) -> CheckedStudy:
    """Import a study's plugins, and check what can be checked before a run: names, and that records can be dealt.

    A simulation may look at its records for this.

    Returns:
        The study with what its records say of a release's cohort, the records, and the methods.

    Raises:
        InputError: something does not fit.
        PolicyError: the policy that the sites state does not allow a method.
    """
    check_text(study)
    load_plugins(study.plugins)
    resolve_device(study.device)
    if study.sites.policy is not None and study.sites.policy.review:
        raise ConfigError(
            "A release waits for a steward where the policy asks for review, and a simulation has none. Found "
            "sites.policy.review: true, the default; set it to false."
        )
    check_partition(study.sites.partition)
    check_classifier(study.classifier)
    check_flow_names(study.flow)
    source, release = load_source(study.data), study.release
    attributes = len(source.schema.attributes)
    check_release(release.mechanism, release.shrinkage, labels=release.labels, attributes=attributes)
    sites = _dealt(study, source)
    unit, m = study.budget.unit, study.budget.records_per_unit
    try:
        units = [len(Units.of(site.train, unit, m)) for site in sites]
        large = study.sites.policy is None or study.sites.policy.large_delta
        check_delta(study.budget.delta, max(units), large=large, name="budget.delta")
        if study.evaluation.delta is not None:
            tested = max(len(Units.of(site.test, unit, m)) for site in sites)
            check_delta(study.evaluation.delta, tested, large=large, name="evaluation.delta")
        study = _settled(study, sites)
        methods = build_methods(study)
        for method in methods:
            plan_of(method, study)
    except BudgetError as error:
        raise ConfigError(str(error)) from error
    if attributes:
        _check_no_moments(methods)
    check_shapes(methods, source.schema, [len(site.train) for site in sites])
    if study.sites.policy is not None:
        _check_policy(study, study.sites.policy, methods, min(units))
    return CheckedStudy(study, sites, methods, source.notes)


def settled(study: StudyConfig) -> StudyConfig:
    """Return a checked study as a simulation runs it: with what the public numbers of its records settle.

    Raises:
        InputError: the records are not there any more.
    """
    load_plugins(study.plugins)
    return _settled(study, _dealt(study, load_source(study.data)))


def _settled(study: StudyConfig, sites: list[SiteData]) -> StudyConfig:
    study = with_defaults_of_rows(study, sites[0].train.schema)
    return with_numbers_asked(with_cohort(study, [site.train for site in sites]), sites)


def _dealt(study: StudyConfig, source: Source) -> list[SiteData]:
    return deal_to_sites(study, source)


def check_text(study: StudyConfig) -> None:
    """Check that every text and path of a study is Unicode: its processes read it from a file in UTF-8.

    Raises:
        ConfigError: one is not.
    """
    for key, value in _texts(study.model_dump()):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"A study and its paths are in UTF-8, as the file is that its processes read. '{key}' is "
                f"{value!a}, in another encoding; rename it, and the folders above it."
            ) from error


def _texts(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text below a value, keys too, with its dotted key."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield key, str(name)
            yield from _texts(value, f"{key}.{name}".removeprefix("."))
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _texts(value, key)
    elif isinstance(tree, (str, Path)):
        yield key, str(tree)


def _check_no_moments(methods: Iterable[Method]) -> None:
    """Check that no method asks for moments, which are of classes, where a record has attributes.

    Raises:
        ConfigError: one does.
    """
    for method in methods:
        if any(event.stage == "moments" for event in method.events()):
            raise ConfigError(
                f"Moments are of classes, and these records have attributes. The method {method.name} asks for some; "
                "leave data.attributes out, set flow.warm_start: none, or use another method."
            )


def _check_policy(study: StudyConfig, policy: PolicyConfig, methods: Iterable[Method], units: int) -> None:
    """Check every method's plan against the policy that the study's sites state, as each of them will.

    Raises:
        PolicyError: a site would refuse it.
    """
    for method in methods:
        plan = plan_of(method, study)
        check_plan(policy, plan, units=units, noise=study.noise)
        MemoryLedger().reserve(plan, allowance(policy, plan))
