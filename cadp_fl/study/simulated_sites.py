"""The sites of a simulation: one data set dealt to as many `Site` objects, with seeded or real noise."""

import os
from collections.abc import Mapping, MutableMapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cadp_fl.config import StudyConfig, load_study
from cadp_fl.data.partition import SiteData, deal_to_sites
from cadp_fl.data.sources import load_source
from cadp_fl.device import resolve_device
from cadp_fl.errors import ConfigError
from cadp_fl.outputs import replaced_file
from cadp_fl.privacy.ledger import MemoryLedger
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.policy import open_policy
from cadp_fl.site.site import Site
from cadp_fl.study.plugins import load_plugins

__all__ = ["DEVICE_VARIABLE", "ORDERS", "OUTBOX", "dealt", "simulated_site", "study_from_run_config"]

PREVIEWS_PER_CLASS, PREVIEWED_ROWS = 8, 5000

DEVICE_VARIABLE = "CADP_FL_DEVICE"
"""Environment variable that stands for the study's `device` in processes which see one GPU of several."""

OUTBOX = "outbox"
"""Folder of a simulated site's releases until they are fetched."""

ORDERS = "orders"
"""Folder of which record each released one is of, until what they keep is measured."""


def study_from_run_config(run_config: Mapping[str, Any], app_folder: Path) -> tuple[StudyConfig, Path]:
    """Return the study and the output folder that Flower's run config names, and keep to the study's CPU threads.

    The study's plugins are imported.

    Args:
        run_config: `config`, `output-dir` and `set`; the last is overrides separated by semicolons.
        app_folder: a relative config path is below it.

    Raises:
        ConfigError: a key is missing, or the study is wrong.
    """
    config, output = str(run_config.get("config", "")), str(run_config.get("output-dir", ""))
    if not Path(output).is_absolute():
        raise ConfigError(
            f"output-dir is an absolute path, since Flower's processes start elsewhere. Found '{output}'; pass "
            "-c 'output-dir=\"/absolute/path\"'."
        )
    overrides = tuple(part.strip() for part in str(run_config.get("set", "")).split(";") if part.strip())
    study = _load(app_folder / config, overrides)
    load_plugins(study.plugins)
    # Networks of this size gain nothing from more threads, and lose much where another process wants the cores.
    torch.set_num_threads(study.sites.cpus_per_client)
    study = study.model_copy(update={"device": os.environ.get(DEVICE_VARIABLE, study.device)})
    return study, Path(output)


@lru_cache(maxsize=8)
def _load(path: Path, overrides: tuple[str, ...]) -> StudyConfig:
    return load_study(path, overrides)


def simulated_site(study: StudyConfig, index: int, output: Path, state: MutableMapping[str, Any]) -> Site:
    """Return the site of a partition.

    Args:
        index: number of the site, from 0.
        output: the run folder; a few original records are put there once, for the report's pictures.
        state: survives between two messages to the site; holds its ledger.

    Raises:
        ConfigError: there is no such site.
    """
    if not 0 <= index < study.sites.count:
        raise ConfigError(f"The study has {study.sites.count} sites. Found partition {index}; start that many nodes.")
    name = study.sites.site_names[index]
    data = dealt(study.model_dump_json())[index]
    _write_preview(output / "sites" / name / "preview.npz", data)
    root = NoiseSource.from_seed(study.seed) if study.noise == "seeded" else NoiseSource.from_entropy()
    return Site(
        name,
        data,
        ledger=MemoryLedger(state),
        noise=root.child("site", name),
        # A site that was given no share of a GPU may see one all the same.
        device=resolve_device("cpu" if study.sites.gpus_per_client == 0 else study.device),
        outbox=output / "sites" / name / OUTBOX,
        orders=output / "sites" / name / ORDERS if study.evaluation.fidelity else None,
        simulation=True,
        policy=study.sites.policy or open_policy(study.budget.unit, study.budget.records_per_patient, study.labels),
    )


@lru_cache(maxsize=2)
def dealt(study_json: str) -> list[SiteData]:
    """Return the records of every site; read once in a process."""
    study = StudyConfig.model_validate_json(study_json)
    return deal_to_sites(study, load_source(study.data))


def _write_preview(path: Path, data: SiteData) -> None:
    if path.exists():
        return
    train = data.train
    is_row = train.schema.kind == "row"
    if is_row:  # as many of each class as there are, since their distributions are shown
        chosen = np.linspace(0, len(train) - 1, min(len(train), PREVIEWED_ROWS)).astype(np.int64)
    else:
        classes = range(len(train.schema.classes))
        chosen = np.concatenate([np.flatnonzero(train.labels == label)[:PREVIEWS_PER_CLASS] for label in classes])
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path, mode=0o600) as temporary, temporary.open("wb") as file:  # originals, unlike all else here
        if is_row:
            np.savez_compressed(file, rows=train.records[chosen], labels=train.labels[chosen])
        else:
            np.savez_compressed(file, images=train.records[chosen], labels=train.labels[chosen])
