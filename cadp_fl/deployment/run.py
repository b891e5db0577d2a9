"""One study over real sites, from its config file to its run folder: at the coordinator, who serves the SuperLink.

The run goes on in the SuperLink's own processes, whatever becomes of whoever started it.
"""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cadp_fl.classifier.models import check_classifier
from cadp_fl.config import StudyConfig, dump_study, load_coordinator, load_study
from cadp_fl.deployment.flower import superlink_of
from cadp_fl.deployment.started_run import PROGRESS, StartedRun
from cadp_fl.device import resolve_device
from cadp_fl.errors import BudgetError, CadpError, ConfigError, FlowerError, InputError
from cadp_fl.federated.basis import Basis
from cadp_fl.federated.checkpoint import CHECKPOINT, Checkpoint
from cadp_fl.federated.methods import build_methods
from cadp_fl.federated.recorder import Watcher
from cadp_fl.study.engine import with_cause
from cadp_fl.study.flower import Flower, follow, note_end, start_run
from cadp_fl.study.plugins import load_plugins
from cadp_fl.study.run import check_same_study, check_text, has_ended, make_run_folder

__all__ = ["check_deployed", "run_deployed"]

LOG = "flower.log"
LOOK_SECONDS = 15.0
STARTS = 3
"""Of a server app that dies before its first step: it met the SuperLink at a bad moment."""


def run_deployed(
    config: Path, federation: Path, output: Path, overrides: Iterable[str], *, watch: Watcher, resume: bool = False
) -> dict[str, Any]:
    """Run a study over the sites of a federation, fill its run folder, and return its summary.

    Args:
        config: of the study.
        federation: the coordinator's folder.
        output: the run folder.
        overrides: of the config.
        watch: is called with each step of the run.
        resume: go on with the run in the folder.

    Raises:
        InputError: the config or a folder is wrong, or the folder's run goes on; nothing was started.
        CadpError: the SuperLink does not answer, or the run failed.
    """
    study = load_study(config, overrides)
    check_deployed(study)
    name, flower, output = _name_of(federation), superlink_of(federation), output.resolve()
    _check_free(output, name, resume=resume)
    resolved = output / "config.yaml"
    if resume:
        check_same_study(study, resolved)
        if (output / CHECKPOINT).exists():
            Checkpoint.check(output, Basis.of(study), {})
    if not (resume and has_ended(output)):
        _check_answers(flower, federation)
        if not resume:
            make_run_folder(output)
            resolved.write_text(dump_study(study), encoding="utf-8")
        watch({"step": "start", "text": f"waiting for the sites of the federation '{name}'"})
        for start in range(1, STARTS + 1):
            run = _start(flower, name, federation, output, resume=resume)
            if _follow(run, flower, output, watch, is_last=start == STARTS):
                break
    summary: dict[str, Any] = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    return summary


def check_deployed(study: StudyConfig) -> None:
    """Import a study's plugins, and check what can be checked of it without any site's records.

    Raises:
        ConfigError: something does not fit.
    """
    check_text(study)
    load_plugins(study.plugins)
    resolve_device(study.device)
    if study.sites.names is None:
        raise ConfigError(
            "A run over real sites names them, as their nodes are registered. Found no sites.names; give one name a "
            "site."
        )
    check_classifier(study.classifier)
    try:
        build_methods(study)
    except BudgetError as error:
        raise ConfigError(str(error)) from error


def _name_of(folder: Path) -> str:
    path = folder / "coordinator.yaml"
    if not path.is_file():
        raise InputError(
            f"A federation is the folder that cadp-fl coordinator init made. '{folder}' holds no coordinator.yaml; "
            "check --federation."
        )
    return load_coordinator(path).federation


def _check_free(output: Path, federation: str, *, resume: bool) -> None:
    """Check that no run goes on in a folder, and that one which is resumed is of this federation.

    Raises:
        InputError: it is not so.
        CadpError: the SuperLink of the folder's run does not answer.
    """
    known = StartedRun.of(output)
    if known is None:
        return
    if resume and known.federation != federation:
        raise InputError(
            f"A run is resumed over the federation that it began with, '{known.federation}'. Found '{federation}'; "
            "give its folder as --federation."
        )
    known.check_is_over(output)


def _check_answers(flower: Flower, federation: Path) -> None:
    try:
        flower.status(0)
    except FlowerError as error:
        raise CadpError(
            f"A run needs the federation's SuperLink. It does not answer ({error}); start it with cadp-fl coordinator "
            f"serve {federation}"
        ) from error


def _start(flower: Flower, name: str, federation: Path, output: Path, *, resume: bool) -> StartedRun:
    """Start Flower's run of a study, and write down which it is."""
    progress = output / PROGRESS
    progress.write_bytes(b"")
    settings: dict[str, str | bool] = {
        "config": str(output / "config.yaml"),
        "output-dir": str(output),
        "progress": str(progress),
        "federation": name,
        "resume": resume and (output / CHECKPOINT).exists(),
    }
    run_id = start_run(flower, settings)
    run = StartedRun(federation=name, folder=federation.resolve(), flower_run=run_id, started=datetime.now(UTC))
    run.store(output)
    return run


def _follow(run: StartedRun, flower: Flower, output: Path, watch: Watcher, *, is_last: bool) -> bool:
    """Pass on a run's steps until it is done, and return whether its server app took any.

    Raises:
        CadpError: it failed, or its server app died.
    """
    log = output / LOG
    try:
        for step in follow(output / PROGRESS, run.ended, look_seconds=LOOK_SECONDS):
            watch(step)
        return True
    except FlowerError as error:
        flower.keep_log(run.flower_run, log)
        if not (is_last or (output / PROGRESS).stat().st_size or "stopped" in str(error)):
            return False
        said = with_cause(str(error), log)
        note_end(output, said)
        raise CadpError(f"{said} See '{log}'; go on with --resume.") from error
    except CadpError:
        flower.keep_log(run.flower_run, log)
        raise
