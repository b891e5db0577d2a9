"""Runs a study through Flower's own front door: a private SuperLink, one `flwr run`, and nothing left behind.

The SuperLink gets a Flower home and a port of its own, so that two simulations do not meet; it installs no
dependencies, sends no telemetry and looks for no update. The server app writes its progress to a file that this
module follows.
"""

import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import httpx
import psutil
import torch

from cadp_fl.config import StudyConfig
from cadp_fl.ending import interruptible, uninterrupted
from cadp_fl.errors import CadpError, FlowerError, LateStartError
from cadp_fl.federated.recorder import Watcher
from cadp_fl.study.engine import PREFIX, cpus, short_place, sites_at_once, temporary_place, with_cause
from cadp_fl.study.environment import flower_environment, free_port
from cadp_fl.study.flower import Flower, follow, note_end, start_run
from cadp_fl.study.processes import ProcessTracker
from cadp_fl.study.simulated_sites import DEVICE_VARIABLE

__all__ = ["Engine", "Start", "simulate", "start_superlink"]

START_SECONDS = 60.0
PAUSE_SECONDS = 0.1
LOOK_SECONDS = 2.0
CONNECTION = "simulation"
QUIET_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_ADDRESS": "local"}

STARTS, RAY_LATE = 3, "timed out during startup"
"""How often the engine is started, at most, where Ray is late.

It waits 30 s for its own processes, cannot be asked to wait longer, and a busy machine may need more.
"""

BEGIN_SECONDS, IDLE_SECONDS, WORK_SECONDS = 600.0, 60.0, 3.0
"""In which the first site answers, at most; and in which all processes together compute so much, at least."""


GONE_SECONDS = 20.0
"""After the end of the server app's process, in which Flower says what became of the run."""


def simulate(study: StudyConfig, config: Path, output: Path, *, watch: Watcher, resume: bool = False) -> None:
    """Run a study in Flower's simulation engine, and return when its run folder is filled and no process is left.

    Args:
        study: what `config` holds.
        config: a resolved config file, absolute.
        output: the run folder, absolute.
        watch: is called with each step of the run.
        resume: go on with the run in the folder, from its last finished phase.

    Raises:
        CadpError: the run failed; Flower's log is in the run folder.
        KeyboardInterrupt: this process was asked to end.
    """
    for attempt in range(1, STARTS + 1):
        try:
            return _simulate(study, config, output, watch=watch, resume=resume)
        except LateStartError as error:
            if attempt == STARTS:
                raise CadpError(f"{error} It was started {STARTS} times; let the machine do less at once.") from error
            # No site was asked for anything, but the server app may have begun the run folder.
            resume = True
            watch({"step": "start", "text": f"starting Flower's simulation engine again: {error}"})


def _simulate(study: StudyConfig, config: Path, output: Path, *, watch: Watcher, resume: bool) -> None:
    with interruptible():
        engine = Engine(study, output / "flower.log")
        try:  # twice, since the first interrupt may come where the first clean-up begins
            try:
                engine.run(config, output, watch, resume=resume)
            finally:
                uninterrupted(engine.close)
        finally:
            uninterrupted(engine.close)


class Engine:
    """Processes and temporary folders of one run."""

    def __init__(self, study: StudyConfig, log: Path) -> None:
        self._study, self._log = study, log
        self._logged = log.stat().st_size if log.exists() else 0
        self.tracker = ProcessTracker()
        self._is_closed = False
        self._had_server = False
        self._server_left: float | None = None
        self._folders: list[Path] = []

    def run(self, config: Path, output: Path, watch: Watcher, *, resume: bool) -> None:
        """Start what a run needs, and follow it to its end."""
        home, short = self.new_folder(temporary_place()), self.new_folder(short_place())
        self.tracker.guard(self._folders)
        progress = home / "progress.jsonl"
        progress.touch()
        folders = {"TMPDIR": str(home), "RAY_TMPDIR": str(short)}
        quiet = flower_environment(home) | QUIET_RAY
        environment = self.tracker.environment | quiet | folders | _one_device(self._study)
        flower = Flower(home, CONNECTION, environment)
        address = start_superlink(self.tracker, environment, self._log)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = "{address}"\n'
            "insecure = true\n",
            encoding="ascii",
        )
        run_id = start_run(
            flower,
            {"config": str(config), "output-dir": str(output), "resume": resume, "progress": str(progress)},
            "--federation-config",
            _federation(self._study),
        )
        start = Start()
        try:
            for step in follow(progress, lambda: self.ended(flower, run_id, start), look_seconds=LOOK_SECONDS):
                start.is_over = start.is_over or step["step"] in ("answer", "round", "done")
                if step["step"] == "done" and step["status"] != "complete":
                    flower.keep_log(run_id, self._log)
                watch(step)
        except FlowerError as error:
            flower.keep_log(run_id, self._log)
            said = with_cause(str(error), self._log, self._logged)
            if RAY_LATE in said and not start.is_over:
                raise LateStartError(
                    "Ray, which runs the simulated sites, starts within 30 s. Its processes did not: this machine was "
                    f"too busy. See '{self._log}'."
                ) from error
            note_end(output, said)
            raise CadpError(f"{said} See '{self._log}'.") from error
        except CadpError:
            flower.keep_log(run_id, self._log)
            raise

    def close(self) -> None:
        """Stop every process and remove every temporary folder, once.

        Raises:
            CadpError: a process does not end.
        """
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self.tracker.stop()
        finally:
            for folder in self._folders:
                shutil.rmtree(folder, ignore_errors=True)

    def new_folder(self, place: Path) -> Path:
        """Return a new folder, which goes when the engine ends."""
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        self._folders.append(folder)
        return folder

    def ended(self, flower: Flower, run_id: int, start: "Start") -> str:
        """Return what Flower says of a run that is over, and nothing of one that goes on."""
        processes = self.tracker.alive()  # cheaper than asking Flower, and remembers them for the end
        start.check(processes)
        if any("flwr-simulation" in _command(process) for process in processes):
            self._server_left, self._had_server = None, True
            return ""
        status = flower.status(run_id)
        if status.startswith("finished"):
            return status
        self._server_left = self._server_left or time.monotonic()
        if self._had_server and time.monotonic() - self._server_left > GONE_SECONDS:  # Flower notices in minutes
            raise FlowerError(
                "The server app's process ended without a word, as one does that is killed (where memory is short) or "
                "that meets a limit of this user (ulimit -a)."
            )
        return ""


class Start:
    """The start of a run, until its first answer of a site: it is given up when its processes no longer do anything."""

    def __init__(self) -> None:
        self.is_over = False
        self._began = self._last_work = time.monotonic()
        self._worked = 0.0

    def check(self, processes: Iterable[psutil.Process]) -> None:
        """Look whether it goes on.

        Raises:
            FlowerError: it does not.
        """
        now, worked = time.monotonic(), sum(map(_cpu_seconds, processes))
        if worked > self._worked + WORK_SECONDS or worked < self._worked:  # less, where one that worked has ended
            self._worked, self._last_work = worked, now
        if not self.is_over and (now - self._last_work > IDLE_SECONDS or now - self._began > BEGIN_SECONDS):
            raise FlowerError(
                f"Flower's simulation engine has a site answer within {BEGIN_SECONDS:.0f} s, and works until then. "
                f"None did in {now - self._began:.0f} s, the last {now - self._last_work:.0f} s of them almost idle."
            )


def _one_device(study: StudyConfig) -> dict[str, str]:
    """Return the environment that shows every process the one GPU that a study names, as the first and only one."""
    match = re.fullmatch(r"cuda:(\d+)", study.device)
    if match is None:
        return {}
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    index = int(match.group(1))
    return {"CUDA_VISIBLE_DEVICES": visible[index] if visible else str(index), DEVICE_VARIABLE: "cuda"}


def _gpu_share(study: StudyConfig) -> float:
    """Return the share of a GPU that one site gets: the study's, or an equal one of all GPUs that it may use."""
    sites = study.sites
    if sites.gpus_per_client is not None:
        return sites.gpus_per_client
    if study.device == "cpu" or not torch.cuda.is_available():
        return 0.0
    gpus = 1 if study.device.startswith("cuda:") else torch.cuda.device_count()
    return min(1.0, math.floor(100 * gpus / sites_at_once(sites)) / 100)


def start_superlink(tracker: ProcessTracker, environment: dict[str, str], log: Path) -> str:
    """Start a SuperLink on a free port, and return its address once it answers."""
    port = free_port()
    command = [
        *("flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess"),
        *("--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation"),
    ]
    process = tracker.start(command, environment, log=log)
    deadline = time.monotonic() + START_SECONDS
    while not _answers(f"http://127.0.0.1:{port}/health"):
        if process.poll() is not None or time.monotonic() > deadline:
            said = with_cause(f"Flower's SuperLink did not start within {START_SECONDS:.0f} s.", log)
            raise CadpError(f"{said} See '{log}'.")
        time.sleep(PAUSE_SECONDS)
    return f"127.0.0.1:{port}"


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=1, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _federation(study: StudyConfig) -> str:
    """Return how many nodes Flower's engine starts, and what each of them gets."""
    sites = study.sites
    return (
        f"num-supernodes={sites.count} client-resources-num-cpus={sites.cpus_per_client} "
        f"client-resources-num-gpus={_gpu_share(study)} init-args-num-cpus={cpus()}"
    )


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        used = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(used.user + used.system)
