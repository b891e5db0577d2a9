"""Runs a study through Flower's own front door: a private SuperLink, one `flwr run`, and nothing left behind.

The SuperLink gets a Flower home and a port of its own, so that two simulations do not meet; it installs no
dependencies, sends no telemetry and looks for no update. The server app writes its progress to a file that this
module follows.
"""

import contextlib
import math
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import torch

from cadp_fl.config import SitesConfig, StudyConfig
from cadp_fl.errors import CadpError, FlowerError
from cadp_fl.federated.recorder import Watcher
from cadp_fl.study.environment import flower_environment, free_port
from cadp_fl.study.flower import Flower, follow, note_end, start_run
from cadp_fl.study.processes import ProcessTracker
from cadp_fl.study.simulation import DEVICE_VARIABLE

__all__ = ["simulate", "sites_at_once"]

START_SECONDS = 60.0
PAUSE_SECONDS = 0.1
LOOK_SECONDS = 2.0
CONNECTION = "simulation"
QUIET_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_ADDRESS": "local"}
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def simulate(study: StudyConfig, config: Path, output: Path, *, watch: Watcher, resume: bool = False) -> None:
    """Run a study in Flower's simulation engine, and return when its run folder is filled.

    Args:
        study: what `config` holds.
        config: a resolved config file, absolute.
        output: the run folder, absolute.
        watch: is called with each step of the run.
        resume: go on with the run in the folder, from its last finished phase.

    Raises:
        CadpError: the run failed; Flower's log is in the run folder.
    """
    log = output / "flower.log"
    with _ending_like_ctrl_c(), tempfile.TemporaryDirectory(prefix="cadp-fl-") as temporary:
        home = Path(temporary)
        progress = home / "progress.jsonl"
        progress.touch()
        tracker = ProcessTracker()
        environment = tracker.environment | flower_environment(home) | QUIET_RAY | _one_device(study)
        flower = Flower(home, CONNECTION, environment)
        try:
            address = _start_superlink(environment, log)
            (home / "config.toml").write_text(
                f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = "{address}"\n'
                "insecure = true\n"
            )
            run_id = start_run(
                flower,
                {"config": str(config), "output-dir": str(output), "resume": resume, "progress": str(progress)},
                "--federation-config",
                _federation(study),
            )
            try:
                for step in follow(progress, lambda: _ended(flower, run_id, tracker), look_seconds=LOOK_SECONDS):
                    if step["step"] == "done" and step["status"] != "complete":
                        flower.keep_log(run_id, log)
                    watch(step)
            except FlowerError as error:
                flower.keep_log(run_id, log)
                note_end(output, str(error))
                raise CadpError(f"{error} See '{log}'.") from error
            except CadpError:
                flower.keep_log(run_id, log)
                raise
        finally:
            tracker.stop()


@contextlib.contextmanager
def _ending_like_ctrl_c() -> Iterator[None]:
    """Let a request to end (SIGTERM) and a closed terminal (SIGHUP) do what Ctrl-C does: stop every process first."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread; whoever runs a study in another one handles them there
        return
    before = {number: signal.signal(number, signal.default_int_handler) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


def sites_at_once(sites: SitesConfig) -> int:
    """Return how many sites compute at the same time on this machine."""
    return min(sites.count, max(1, (os.cpu_count() or 1) // sites.cpus_per_client))


def _start_superlink(environment: dict[str, str], log: Path) -> str:
    """Start a SuperLink on a free port, and return its address once it answers."""
    port = free_port()
    command = [
        *("flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess"),
        *("--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation"),
    ]
    with log.open("ab") as stream:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then stops all others
        )
    deadline = time.monotonic() + START_SECONDS
    while not _answers(f"http://127.0.0.1:{port}/health"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise CadpError(f"Flower's SuperLink did not start within {START_SECONDS:.0f} s; see '{log}'.")
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
        f"client-resources-num-gpus={_gpu_share(study)}"
    )


def _ended(flower: Flower, run_id: int, tracker: ProcessTracker) -> str:
    """Return what Flower says of a run that is over, and nothing of one that goes on."""
    # Looking at processes is cheaper than asking Flower, and remembers them for the end.
    if any("flwr-simulation" in _command(process) for process in tracker.alive()):
        return ""
    status = flower.status(run_id)
    return status if status.startswith("finished") else ""


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
