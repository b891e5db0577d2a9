"""Runs a study through Flower's own front door: a private SuperLink, one `flwr run`, and nothing left behind.

The SuperLink gets a Flower home and a port of its own, so that two simulations do not meet; it installs no
dependencies, sends no telemetry and looks for no update. The server app writes its progress to a file that this
module follows.
"""

import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch

from cadp_fl.config import SitesConfig, StudyConfig
from cadp_fl.errors import CadpError
from cadp_fl.federated.recorder import PROGRESS_VARIABLE, Watcher
from cadp_fl.study.app_folder import stage_app
from cadp_fl.study.processes import ProcessTracker
from cadp_fl.study.simulation import DEVICE_VARIABLE

__all__ = ["simulate", "sites_at_once"]

START_SECONDS = 60.0
PAUSE_SECONDS = 0.1
LOOK_SECONDS = 2.0
LOG_SECONDS = 30.0
CONNECTION = "simulation"
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
        environment = tracker.environment | _quiet_flower(home) | _one_device(study)
        environment[PROGRESS_VARIABLE] = str(progress)
        app = stage_app(home)
        try:
            address = _start_superlink(environment, log)
            (home / "config.toml").write_text(
                f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = "{address}"\n'
                "insecure = true\n"
            )
            run_id = _start_run(study, config, output, app, environment, resume=resume)
            try:
                for step in _steps(progress, run_id, tracker, environment, log):
                    if step["step"] == "done" and step["status"] != "complete":
                        _keep_log(run_id, environment, log)
                    watch(step)
            except CadpError:
                _keep_log(run_id, environment, log)
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


def _quiet_flower(home: Path) -> dict[str, str]:
    """Return the environment that keeps Flower and Ray to themselves."""
    scripts = str(Path(sys.executable).parent)
    return {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_ADDRESS": "local",
        "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
    }


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
    port = _free_port()
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=1, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _start_run(
    study: StudyConfig, config: Path, output: Path, app: Path, environment: dict[str, str], *, resume: bool
) -> int:
    sites = study.sites
    federation = (
        f"num-supernodes={sites.count} client-resources-num-cpus={sites.cpus_per_client} "
        f"client-resources-num-gpus={_gpu_share(study)}"
    )
    # A file, since Flower splits what stands on its command line at spaces and quotes. JSON strings are TOML strings.
    run_config = app.parent / "run.toml"
    values = {"config": str(config), "output-dir": str(output), "resume": resume}
    run_config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    answer = _flwr(
        ["run", str(app), CONNECTION, "-c", str(run_config), "--federation-config", federation, "--format", "json"],
        environment,
    )
    if "run-id" not in answer:
        raise CadpError(f"Flower did not take the run: {answer.get('error-message', answer)}")
    return int(answer["run-id"])


def _flwr(arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Call Flower's command line, and return the JSON that it prints."""
    finished = subprocess.run(
        ["flwr", *arguments], env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    start = finished.stdout.find("{")
    try:
        return dict(json.loads(finished.stdout[start:]))
    except ValueError:
        said = (finished.stderr or finished.stdout).strip().splitlines()
        raise CadpError(f"Flower's command failed: {said[-1] if said else 'it said nothing'}") from None


def _steps(
    progress: Path, run_id: int, tracker: ProcessTracker, environment: dict[str, str], log: Path
) -> Iterator[dict[str, Any]]:
    """Yield every step until the run says that it is done, or is found to be over.

    Raises:
        CadpError: the run failed.
    """
    next_look = time.monotonic() + LOOK_SECONDS
    with progress.open(encoding="utf-8") as lines:
        pending = ""
        while True:
            pending += lines.readline()
            if pending.endswith("\n"):
                step, pending = json.loads(pending), ""
                if step["step"] == "failed":
                    raise CadpError(step["reason"])
                yield step
                if step["step"] == "done":
                    return
                continue
            if time.monotonic() > next_look:
                # Looking at processes is cheaper than asking Flower, and remembers them for the end.
                names = [_command(process) for process in tracker.alive()]
                if not any("flwr-simulation" in name for name in names):
                    status = _status(run_id, environment)
                    if status.startswith("finished"):
                        raise CadpError(f"The run ended early. Flower says '{status}'; see '{log}'.")
                next_look = time.monotonic() + LOOK_SECONDS
            time.sleep(PAUSE_SECONDS)


def _keep_log(run_id: int, environment: dict[str, str], log: Path) -> None:
    """Append what the server app and the sites printed, which Flower keeps apart from its own log."""
    with log.open("ab") as stream, contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            ["flwr", "log", str(run_id), CONNECTION, "--show"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.DEVNULL,
            timeout=LOG_SECONDS,
            check=False,
        )


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _status(run_id: int, environment: dict[str, str]) -> str:
    answer = _flwr(["ls", CONNECTION, "--run-id", str(run_id), "--format", "json"], environment)
    runs = answer.get("runs", [])
    return str(runs[0].get("status", "unknown")) if runs else "unknown"
