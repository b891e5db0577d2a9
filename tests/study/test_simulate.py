"""The real thing: Flower's simulation engine, by our command and by Flower's own. About a minute each."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cadp_fl.study.processes import MARK
from tests.conftest import ROOT, TINY

pytestmark = pytest.mark.ray

SCRIPTS = Path(sys.executable).parent
CONFIG = ROOT / "configs" / "quickstart.yaml"
LEAN = TINY | {"methods": "{cadp-given-flow: {}, fedavg: {rounds: 2, local_epochs: 1}}"}
OVERRIDES = [f"{key}={value}" for key, value in LEAN.items() if not key.startswith("methods.")]


def command(output, *arguments):
    settings = [part for override in OVERRIDES for part in ("--set", override)]
    return [str(SCRIPTS / "cadp-fl"), "simulate", str(CONFIG), "--output", str(output), *settings, *arguments]


def marked(parent):
    """Return the processes that carry the mark which a simulation gave them, started by `parent`."""
    mine = {}
    for process in psutil.process_iter():
        try:
            if MARK in (environment := process.environ()) and any(each.pid == parent for each in process.parents()):
                mine[process] = environment
        except psutil.Error:
            continue
    return mine


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Run the command once, and look at its processes while it runs."""
    output = tmp_path_factory.mktemp("simulate") / "run"
    seen = {}
    with subprocess.Popen(command(output, "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        while run.poll() is None:
            seen |= marked(run.pid)
            time.sleep(0.5)
        out, err = run.communicate()
    assert run.returncode == 0, err
    return output, json.loads(out), seen


def test_simulate_fills_the_run_folder_and_prints_its_summary(simulated):
    output, printed, _ = simulated
    assert printed == json.loads((output / "summary.json").read_text())
    assert printed["status"] == "complete"
    assert (output / "report.html").stat().st_size > 20_000


def test_simulate_leaves_no_process_behind(simulated):
    _, _, seen = simulated
    assert len(seen) >= 3
    assert not [process for process in seen if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_simulate_sends_no_telemetry_looks_for_no_update_and_installs_nothing(simulated):
    _, _, seen = simulated
    assert len(seen) >= 3
    for environment in seen.values():
        assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
        assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
        assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
        assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
        assert not Path(environment["FLWR_HOME"]).exists(), "the private Flower home is removed"


@pytest.mark.slow
def test_flowers_own_command_gives_the_same_summary(simulated, tmp_path):
    _, expected, _ = simulated
    port = free_port()
    environment = os.environ | {
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }
    app = tmp_path / "cadp-fl"
    app.mkdir()
    for name in ("pyproject.toml", "LICENSE", "README.md", ".gitignore", "clients", "server", "configs"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, app / name)
    output = tmp_path / "run"
    config = f'output-dir="{output}" set="{"; ".join(OVERRIDES)}"'
    federation = "num-supernodes=3 client-resources-num-cpus=1"
    arguments = ["flwr", "run", ".", "--stream", "-c", config, "--federation-config", federation]
    try:
        finished = subprocess.run(
            arguments, cwd=app, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
    finally:
        stop_superlink(port)
    assert finished.returncode == 0, finished.stderr
    summary = json.loads((output / "summary.json").read_text())
    for key in set(summary) - {"started", "seconds"}:
        assert summary[key] == expected[key], key
    assert "cadp-given-flow/flow  2/2" in finished.stdout, "progress is streamed"


@pytest.mark.parametrize(("ending", "seconds"), [(signal.SIGINT, 4.0), (signal.SIGINT, 14.0), (signal.SIGTERM, 12.0)])
def test_a_run_that_is_stopped_leaves_no_process_behind(tmp_path, ending, seconds):
    seen = {}
    run = subprocess.Popen(
        command(tmp_path / "run"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        seen |= marked(run.pid)
        time.sleep(0.2)
    assert run.poll() is None
    for pause in (0.0, 0.01, 0.05, 0.1, 1.0):  # a nervous user
        time.sleep(pause)
        if run.poll() is None:
            run.send_signal(ending)
    _, err = run.communicate(timeout=80)
    assert run.returncode == 130
    assert ("No process was left behind" in err) == (tmp_path / "run").exists()
    assert "Traceback" not in err
    assert not [process for process in seen if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_a_run_that_is_killed_leaves_no_process_behind(tmp_path):
    run, seen = subprocess.Popen(command(tmp_path / "run"), stdout=subprocess.DEVNULL), {}
    while not any("raylet" in each.name() for each in seen if each.is_running()):
        assert run.poll() is None
        seen |= marked(run.pid)
        time.sleep(0.2)
    run.kill()
    run.wait()
    deadline = time.monotonic() + 60
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in seen):
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.mark.slow
def test_two_simulations_at_once_do_not_meet(simulated, tmp_path):
    runs = [subprocess.Popen(command(tmp_path / name, "--quiet"), stdout=subprocess.DEVNULL) for name in "ab"]
    assert [run.wait(timeout=600) for run in runs] == [0, 0]
    for name in "ab":
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        for key in set(summary) - {"started", "seconds"}:
            assert summary[key] == simulated[1][key], key


@pytest.mark.slow
def test_the_quickstart_reaches_what_it_promises_in_time_and_memory(tmp_path):
    """fedavg 0.95, cadp-given-flow 0.85, under 3 minutes and 4 GB (sum of PSS) on two cores."""
    started, peak = time.monotonic(), 0
    quickstart = [str(SCRIPTS / "cadp-fl"), "simulate", str(CONFIG), "--output", str(tmp_path / "run"), "--json"]
    with subprocess.Popen(quickstart, stdout=subprocess.PIPE, text=True) as run:
        while run.poll() is None:
            peak = max(peak, proportional_set_size([psutil.Process(run.pid), *marked(run.pid)]))
            time.sleep(0.5)
        summary = json.loads(run.communicate()[0])
    accuracy = {name: row["accuracy"] for name, row in summary["methods"].items()}
    assert accuracy["fedavg"] >= 0.95
    assert accuracy["cadp-given-flow"] >= 0.85
    assert accuracy["dp-sgd"] >= 0.8
    assert summary["methods"]["dp-sgd"]["epsilon"] <= 3.0
    assert time.monotonic() - started < 180
    assert peak < 4e9


def proportional_set_size(roots):
    """Return the bytes of some processes and all below them, each shared page divided among those that share it."""
    total, counted = 0, set()
    for root in roots:
        try:
            for process in {root, *root.children(recursive=True)} - counted:
                counted.add(process)
                total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def stop_superlink(port):
    for process in psutil.process_iter():
        try:
            if "flower-superlink" in " ".join(process.cmdline()) and str(port) in process.cmdline():
                children = process.children(recursive=True)
                process.terminate()
                psutil.wait_procs([process, *children], timeout=20)
        except psutil.Error:
            continue
