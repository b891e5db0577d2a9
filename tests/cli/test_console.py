"""Laws of printing: text of users and of sites is never markup, and output never fails a run."""

import ast
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from cadp_fl import ending
from cadp_fl.cli import main as cli
from cadp_fl.cli.console import console_to, outlasting, plain
from cadp_fl.cli.progress import progress_to, show_results
from tests.cli.test_cli import SUMMARY, call
from tests.conftest import ROOT

NAMES = [
    "lung CT [/pilot]",
    "[v2]",
    "[bold]x[/bold]",
    ":smile:",
    "[link=http://x]y[/link]",
    "Gr\u00f6\u00dfe \U0001f600",
]


def test_every_console_is_made_where_markup_is_off():
    for path in sorted((ROOT / "cadp_fl" / "cli").rglob("*.py")):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        made = [call for call in calls if getattr(call, "id", getattr(call, "attr", "")) == "Console"]
        assert not made or path.name == "console.py", f"{path} makes a console of its own"
        assert "TextColumn(" not in (text := path.read_text()) or text.count("markup=False)") >= text.count(
            "TextColumn("
        )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [console_to, outlasting])
def test_text_is_printed_as_it_stands(monkeypatch, name, make):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    table = Table(title=name)
    table.add_column(name, no_wrap=True)
    table.add_row(name)
    console = make()
    console.print(table, width=200)
    console.print(name)
    assert stream.getvalue().count(name) == 4


@pytest.mark.parametrize("name", NAMES)
def test_a_runs_results_and_progress_show_every_name(monkeypatch, name):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setenv("COLUMNS", "200")
    console = outlasting()
    gap = {"site": name, "phase": "m/flow", "reason": name}
    methods = {name: next(iter(SUMMARY["methods"].values())) | {"caution": name}}
    shown = SUMMARY | {"name": name, "status": "incomplete", "missing": [gap], "failure": name, "methods": methods}
    show_results(console, shown, Path(name))
    with progress_to(console, silent=False) as watch:
        watch({"step": "answer", "phase": "m/flow", "round": 1, "of": 2, "site": name, "failed": name})
    assert stream.getvalue().count(name) >= 9


def test_bars_show_every_name(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_to(outlasting(), silent=False) as watch:
        watch({"step": "phases", "phases": {"[v2]": 2}, "sites": 2})
        watch({"step": "answer", "phase": "[v2]", "round": 1, "of": 2, "site": "lung [/pilot]", "figures": {}})
    assert "[v2]" in stream.getvalue()
    assert "lung [/pilot] answered" in stream.getvalue()


def test_control_characters_have_no_effect(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    console_to().print("a\x1b[2Jb\x07c\x9bd\u202ee")
    assert stream.getvalue() == "a\\x1b[2Jb\\x07c\\x9bd\\u202ee\n"
    assert plain("a\tb\nc") == "a\tb\nc"


PRINTED = """
import sys
sys.argv = ["cadp-fl", "report", "x"]
from cadp_fl.cli import main as cli
from cadp_fl.cli.console import console_to, outlasting
from cadp_fl.errors import InputError
import cadp_fl.report.page, typer
text = "Gr\\u00f6\\u00dfe \\u00b1 \\U0001f600 l\\udce4ger"

def write_report(run):
    console_to().print(text)
    outlasting().print(text)
    typer.echo(text)
    raise InputError(text)

cadp_fl.report.page.write_report = write_report
cli.main()
"""


@pytest.mark.parametrize(
    "terminal",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1:strict"},
        {"PYTHONIOENCODING": "utf-8:strict"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
)
def test_no_character_is_an_error_on_any_terminal(terminal):
    done = subprocess.run(
        [sys.executable, "-c", PRINTED], env=os.environ | terminal, cwd=ROOT, capture_output=True, timeout=120
    )
    assert done.returncode == 2, done.stderr.decode(errors="replace")
    assert b"Traceback" not in done.stderr
    assert done.stdout.count(b"\n") == 3
    assert done.stderr.startswith(b"cadp-fl: Gr")


RESULTS = """
import sys
sys.argv = ["cadp-fl", "simulate", {config!r}, "--output", {output!r}, *{more!r}]
from pathlib import Path
import cadp_fl.study.run
from cadp_fl.cli import main as cli
from tests.cli.test_cli import STEPS, SUMMARY

def run_study(config, output, overrides, *, watch, resume):
    for step in 200 * STEPS[1:]:
        watch(step)
    Path({done!r}).touch()
    return SUMMARY

cadp_fl.study.run.run_study = run_study
cli.main()
"""


@pytest.mark.parametrize(
    "more", [[], *(pytest.param([each], marks=pytest.mark.slow) for each in ("--json", "--quiet"))]
)
@pytest.mark.parametrize("stream", ["a closed pipe", "a full disk", "none"])
def test_a_run_goes_on_and_succeeds_where_nothing_can_be_printed(tmp_path, stream, more):
    if stream == "a full disk" and not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    code = RESULTS.format(config="none.yaml", output=str(tmp_path / "run"), done=str(tmp_path / "done"), more=more)
    reading, writing = os.pipe()
    os.close(reading)
    if stream == "a full disk":
        os.close(writing)
        writing = os.open("/dev/full", os.O_WRONLY)
    command = [sys.executable, "-c", code]
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", *command] if stream == "none" else command
    done = subprocess.run(shell, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writing)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "done").exists()
    said = "The results could not be printed (No space left on device)" if stream == "a full disk" else ""
    assert done.stderr == (f"cadp-fl: {said}. They are in '{tmp_path / 'run'}'.\n" if said else "")


def test_what_a_command_says_that_stays_never_ends_it(tmp_path):
    code = (
        "import os; reading, writing = os.pipe(); os.close(reading); os.dup2(writing, 1); "
        "from cadp_fl.cli.console import set_streams, teller; set_streams(); say = teller(silent=False); "
        "[say('a site [/x] \\x1b[2J') for _ in range(5000)]; open('done', 'w').close()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "done").exists()


def test_an_interrupt_of_any_command_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(ending, "interrupts", ending.Interrupts())
    monkeypatch.setattr("cadp_fl.report.page.write_report", lambda _: signal.raise_signal(signal.SIGTERM))
    code, out, err = call(monkeypatch, capsys, "report", "x")
    assert (code, out, err) == (130, "", "cadp-fl: Stopped.\n")


def test_an_interrupt_that_another_error_is_made_of_is_one_too(monkeypatch, capsys):
    monkeypatch.setattr(ending, "interrupts", ending.Interrupts())

    def write_report(_):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise SystemError("initialization of a module failed") from None

    monkeypatch.setattr("cadp_fl.report.page.write_report", write_report)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert call(monkeypatch, capsys, "report", "x") == (130, "", "cadp-fl: Stopped.\n")
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_fault_of_our_own_is_one_sentence_and_debug_shows_all(monkeypatch, capsys):
    monkeypatch.setattr("cadp_fl.report.page.write_report", lambda _: json.loads("no"))
    monkeypatch.setattr(ending, "interrupts", ending.Interrupts())
    code, _, err = call(monkeypatch, capsys, "report", "x")
    assert code == 1
    assert err.startswith("cadp-fl: This is a fault of cadp-fl itself (JSONDecodeError: ")
    assert err.count("\n") == 1
    monkeypatch.setattr("sys.argv", ["cadp-fl", "--debug", "report", "x"])
    with pytest.raises(ValueError, match="Expecting value"):
        cli.main()
    monkeypatch.setattr(cli, "is_debugging", False)
