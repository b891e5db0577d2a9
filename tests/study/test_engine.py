"""What the simulation engine needs of a machine is looked at before it starts, by a dry run too."""

import resource
import shutil
import socket
import tempfile
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cadp_fl.cli import main as cli
from cadp_fl.config import load_study
from cadp_fl.errors import CadpError, ConfigError, FlowerError, InputError
from cadp_fl.study import engine
from cadp_fl.study import simulate as launch
from cadp_fl.study.engine import PREFIX, RAY_BYTES, cause_in, check_engine, cpus, short_place
from cadp_fl.study.simulate import Start
from tests.conftest import ROOT


def study(*overrides):
    return load_study(ROOT / "configs" / "quickstart.yaml", overrides)


def test_a_machine_that_has_all_is_taken():
    check_engine(study())


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (f"sites.cpus_per_client={cpus() + 1}", rf"lets us use: {cpus()}\. Found sites\.cpus_per_client {cpus() + 1}"),
        ("sites.gpus_per_client=0.5", r"torch sees here: 0\. Found sites\.gpus_per_client 0\.5"),
    ],
)
def test_what_a_study_asks_for_and_the_machine_lacks_is_refused(monkeypatch, override, sentence):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=sentence):
        check_engine(study(override))


def test_one_gpu_that_a_study_names_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    check_engine(study("sites.gpus_per_client=2"))
    with pytest.raises(ConfigError, match="torch sees here: 1"):
        check_engine(study("sites.gpus_per_client=2").model_copy(update={"device": "cuda:1"}))


@pytest.mark.parametrize(
    ("what", "limit", "sentence"),
    [
        (resource.RLIMIT_AS, 8_000_000 << 10, r"The limit is 7\.6 GiB here; lift it with ulimit -v unlimited"),
        (resource.RLIMIT_NOFILE, 64, r"The limit is 64 here; raise it \(ulimit -n\)"),
    ],
)
def test_a_limit_of_this_process_is_named(monkeypatch, what, limit, sentence):
    real = resource.getrlimit
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, limit) if kind == what else real(kind))
    with pytest.raises(CadpError, match=sentence):
        check_engine(study())


def test_a_full_disk_is_no_shortage_of_memory(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 << 20))
    with pytest.raises(CadpError, match=r"has 3 MiB free on its disk; make room, or set TMPDIR") as raised:
        check_engine(study())
    assert "memory" not in str(raised.value)


def test_a_machine_without_any_temporary_folder_is_refused(monkeypatch):
    def nowhere():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(CadpError, match="set TMPDIR to a folder in which it can"):
        check_engine(study())


@pytest.mark.parametrize("length", [4, 20, 22, 23, 40, 80, 150])
def test_sockets_can_be_made_wherever_temporary_files_are(monkeypatch, tmp_path, length):
    """The names are those that Ray gives; the socket is a real one."""
    root = Path(tempfile.mkdtemp(dir="/tmp"))
    place = root / ("d" * max(1, length - len(str(root)) - 1))
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    mine = Path(tempfile.mkdtemp(prefix=PREFIX, dir=short_place()))
    try:
        session = f"session_{datetime.now():%Y-%m-%d_%H-%M-%S_%f}_1234567"
        path = mine / "ray" / session / "sockets" / "plasma_store"
        assert len(str(path)) - len(str(mine)) == RAY_BYTES
        path.parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    finally:
        shutil.rmtree(mine)
        shutil.rmtree(root)


def test_temporary_files_in_a_folder_of_another_encoding_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", f"{tmp_path}/l\udce4ger")
    with pytest.raises(InputError, match=r"\(TMPDIR\) has a path in UTF-8"):
        check_engine(study())


def test_a_long_path_is_refused_where_there_is_no_short_one(monkeypatch, tmp_path):
    long = tmp_path / ("d" * 60)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setattr(engine, "SHORT_PLACES", (str(tmp_path / "none"),))
    with pytest.raises(CadpError, match=r"TMPDIR has \d+\. '.*' is longer, .* set TMPDIR to a shorter path"):
        short_place()


@pytest.mark.parametrize(("quota", "count"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("no", 8)])
def test_a_containers_quota_counts(monkeypatch, tmp_path, quota, count):
    monkeypatch.setattr(engine.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(engine.sys, "platform", "linux")
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(engine, "CPU_MAX", tmp_path / "cpu.max")
    assert cpus() == count


@pytest.mark.parametrize("dry", [True, False])
def test_a_run_and_its_dry_run_make_the_same_checks_and_write_nothing(monkeypatch, capsys, tmp_path, dry):
    def launched(*_, **__):
        raise AssertionError("the engine was started")

    monkeypatch.setattr("cadp_fl.study.run.simulate", launched)
    config = str(ROOT / "configs" / "quickstart.yaml")
    more = ["--dry-run"] if dry else ["--output", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", ["cadp-fl", "simulate", config, "--set", "sites.cpus_per_client=1024", *more])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    assert exited.value.code == 2
    assert "Found sites.cpus_per_client 1024; lower it." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


TRACE = """\
INFO :      Starting
\x1b[91mERROR \x1b[0m:    An exception
Traceback (most recent call last):
  File "node.py", line 1, in init
    raise OSError(
OSError: AF_UNIX path length cannot exceed 107 bytes: /x\x1b[2J
The above exception was the direct cause of the following exception:
Traceback (most recent call last):
RuntimeError: Simulation Runtime crashed.

The above exception was the direct cause of the following exception:

RuntimeError: An error was encountered. Ending simulation.
"""


def test_the_cause_is_the_first_error_of_the_last_chain(tmp_path):
    log = tmp_path / "flower.log"
    log.write_text("ValueError: of an earlier run\n")
    before = log.stat().st_size
    assert cause_in(log, before) == ""
    with log.open("a") as file:
        file.write(f"KeyError: 'handled'\n{TRACE}")
    assert cause_in(log, before) == "OSError: AF_UNIX path length cannot exceed 107 bytes: /x [2J"
    log.write_text("Exception: The current node timed out during startup. This could happen.\n")
    assert cause_in(log) == "Exception: The current node timed out during startup. This could happen."
    log.write_text("(ClientAppActor pid=7) ray.exceptions.RaySystemError: System error: no\n")
    assert cause_in(log) == "RaySystemError: System error: no"


class Working:
    """A process that has computed for some seconds."""

    def __init__(self, *seconds):
        self.seconds = list(seconds)

    def cpu_times(self):
        return SimpleNamespace(user=self.seconds.pop(0), system=0.0)


def test_a_start_that_does_nothing_is_given_up_and_one_that_works_is_not(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(launch, "time", SimpleNamespace(monotonic=lambda: now[0]))
    start, busy = Start(), Working(*range(0, 400, 4))
    for moment in range(0, 240, 30):
        now[0] = float(moment)
        start.check([busy])
    start, idle = Start(), Working(5.0, 5.1, 5.2, 5.3, 5.4)
    start.check([idle])
    now[0] += launch.IDLE_SECONDS - 1
    start.check([idle])
    now[0] += 2
    with pytest.raises(FlowerError, match="almost idle"):
        start.check([idle])
    start.is_over = True
    start.check([idle])


def test_no_start_takes_for_ever(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(launch, "time", SimpleNamespace(monotonic=lambda: now[0]))
    start, busy = Start(), Working(*range(0, 10_000, 10))
    with pytest.raises(FlowerError, match=r"within 600 s"):  # noqa: PT012
        for moment in range(0, 1000, 20):
            now[0] = float(moment)
            start.check([busy])
    assert now[0] <= launch.BEGIN_SECONDS + 20


@pytest.mark.parametrize("says", ["running", "finished:completed"])
def test_a_server_app_that_vanished_is_noticed_and_one_that_ended_is_no_fault(monkeypatch, tmp_path, says):
    now, here = [1.0], SimpleNamespace(cmdline=lambda: ["flwr-simulation"], cpu_times=lambda: Working(1.0).cpu_times())
    monkeypatch.setattr(launch, "time", SimpleNamespace(monotonic=lambda: now[0]))
    engine, there = launch.Engine(study(), tmp_path / "flower.log"), [[here], [], [], []]
    engine.tracker = SimpleNamespace(alive=lambda: there.pop(0))
    flower, start = SimpleNamespace(status=lambda _: says), Start()
    assert engine.ended(flower, 7, start) == ""
    if says != "running":
        assert engine.ended(flower, 7, start) == says
        return
    assert engine.ended(flower, 7, start) == ""
    now[0] += launch.GONE_SECONDS - 1
    assert engine.ended(flower, 7, start) == ""
    now[0] += 2
    with pytest.raises(FlowerError, match="ended without a word"):
        engine.ended(flower, 7, start)


class Late:
    """An engine whose first starts are too late for Ray, as on a busy machine."""

    def __init__(self, monkeypatch, tmp_path, *, times, answered=False):
        self.log, self.resumed, self.steps = tmp_path / "flower.log", [], []
        folders = iter(range(100))

        def started(flower, settings, *options):
            self.resumed.append(settings["resume"])
            return len(self.resumed)

        def followed(progress, ended, *, look_seconds):
            if answered:
                yield {"step": "answer"}
            if len(self.resumed) <= times:
                with self.log.open("a") as file:
                    file.write("Exception: The current node timed out during startup.\n")
                raise FlowerError("The server app died.")
            yield {"step": "done", "status": "complete"}

        monkeypatch.setattr(launch, "start_run", started)
        monkeypatch.setattr(launch, "follow", followed)
        monkeypatch.setattr(launch, "start_superlink", lambda tracker, environment, log: "127.0.0.1:1")
        monkeypatch.setattr(launch.Flower, "keep_log", lambda self, run_id, log: None)
        monkeypatch.setattr(launch.Engine, "new_folder", lambda self, place: new(tmp_path / str(next(folders))))
        self.output = new(tmp_path / "run")
        self.log = self.output / "flower.log"

    def simulate(self):
        launch.simulate(study(), self.output / "config.yaml", self.output, watch=self.steps.append)


def new(folder):
    folder.mkdir()
    return folder


def test_a_start_that_ray_gives_up_is_tried_again(monkeypatch, tmp_path):
    late = Late(monkeypatch, tmp_path, times=2)
    late.simulate()
    assert late.resumed == [False, True, True]
    assert [step["step"] for step in late.steps] == ["start", "start", "done"]
    assert "this machine was too busy" in late.steps[0]["text"]


def test_a_machine_that_stays_too_busy_for_ray_is_named_as_the_cause(monkeypatch, tmp_path):
    late = Late(monkeypatch, tmp_path, times=9)
    with pytest.raises(CadpError, match=r"Ray, .* starts within 30 s\..* too busy.* started 3 times"):
        late.simulate()


def test_a_run_whose_sites_have_answered_is_not_started_again(monkeypatch, tmp_path):
    late = Late(monkeypatch, tmp_path, times=1, answered=True)
    with pytest.raises(CadpError, match="timed out during startup"):
        late.simulate()
    assert late.resumed == [False]
