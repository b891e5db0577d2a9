"""One study from its config file to its run folder."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cadp_fl.classifier.models import check_classifier
from cadp_fl.config import StudyConfig, dump_study, load_study
from cadp_fl.data.partition import check_partition, deal
from cadp_fl.data.sources import load_source
from cadp_fl.device import resolve_device
from cadp_fl.errors import BudgetError, ConfigError, InputError
from cadp_fl.federated.methods import build_methods
from cadp_fl.federated.recorder import Watcher
from cadp_fl.flow.cinn import check_flow
from cadp_fl.privacy.accounting import check_delta
from cadp_fl.release.privatize import check_release
from cadp_fl.study.launch import simulate

__all__ = ["check_study", "run_study"]


def run_study(config: Path, output: Path, overrides: Iterable[str], *, watch: Watcher) -> dict[str, Any]:
    """Simulate a study, fill its run folder, and return its summary.

    Raises:
        InputError: the config or the folder is wrong; nothing was written.
        CadpError: the run failed.
    """
    study = load_study(config, overrides)
    check_study(study)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"A run folder is new or empty. '{output}' is neither; choose another --output.")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"A run folder can be made. '{output}' cannot: {error.strerror}; choose another.") from error
    resolved = output.resolve() / "config.yaml"
    resolved.write_text(dump_study(study), encoding="utf-8")
    watch({"step": "start"})
    simulate(study, resolved, output.resolve(), watch=watch)
    summary: dict[str, Any] = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    return summary


def check_study(study: StudyConfig) -> None:
    """Check all that can be checked before a run: every name, and that the records can be dealt.

    A simulation may look at its records for this.

    Raises:
        InputError: something does not fit.
    """
    resolve_device(study.device)
    check_partition(study.sites.partition)
    check_classifier(study.classifier)
    dataset = load_source(study.data)
    check_flow(study.flow, dataset.schema.shape)
    release, dims = study.release, math.prod(dataset.schema.shape)
    check_release(release.mechanism, release.shrinkage, release.latent_dims or dims, dims)
    sites = deal(dataset, study.sites.count, study.sites.partition, study.data.test_fraction, seed=study.seed)
    try:
        for site in sites:
            check_delta(study.budget.delta, len(site.train))
        build_methods(study)
    except BudgetError as error:
        raise ConfigError(str(error)) from error
