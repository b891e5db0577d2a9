"""A process that dies at every point of its writing, one after the other; run by the tests of the durable ledger.

It forks: the child carries out a script and is killed as the n-th call that may write (to SQLite, or to the system) is
about to be made, or has just returned; n counts up until a child lives. A child reports through a pipe what it
was acknowledged. What is left of each child's folder is the caller's to look at.

Usage: python -m tests.privacy.crashes FOLDER {create,work} [random]
"""

import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from cadp_fl.privacy.durable import DurableLedger
from cadp_fl.privacy.plan import Allowance, Plan
from tests.privacy.ledger_events import LAPLACE, LIMIT

WRITES = {"connect", "execute", "close", "open", "write", "flush", "fsync", "replace", "unlink", "chmod", "mkdir"}
TERMS = {"population": "chest", "unit": "record"}


def work(folder: Path, said) -> None:
    """Reserve, spend and store, and say what was acknowledged."""
    ledger = DurableLedger.open(folder / "ledger.db", **TERMS)
    ledger.reserve(Plan("m", (LAPLACE,) * 2, 1e-6, run="second"), LIMIT)
    said({"reserve": "second/m"})
    said({"spend": ledger.spend("second/m", LAPLACE, request="q", body="b")})
    ledger.store("q", "a" * 64)
    said({"store": "a" * 64})


def create(folder: Path, said) -> None:
    """Make a ledger, and say so."""
    DurableLedger.create(folder / "ledger.db", **TERMS)
    said({"create": True})


def prepared(folder: Path) -> None:
    """Leave a ledger with one plan, of which one event is spent."""
    ledger = DurableLedger.create(folder / "ledger.db", **TERMS)
    ledger.reserve(Plan("m", (LAPLACE,) * 2, 1e-6, run="first"), Allowance(LIMIT.epsilon, LIMIT.delta))
    ledger.spend("first/m", LAPLACE)


def die_at(count: int):
    """Return a profiler that kills the process at the n-th beginning or end of a call that may write."""
    left = itertools.count(count, -1)

    def profile(_frame, event, function):
        if event in ("c_call", "c_return") and function.__name__ in WRITES and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return profile


def child(script, folder: Path, point: int | None) -> tuple[bool, list]:
    """Run a script in a child that dies at a point, or at a random time; return whether it lived, and what it said."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        if point is not None:
            sys.setprofile(die_at(point))
        script(folder, lambda what: os.write(writer, json.dumps(what).encode() + b"\n"))
        sys.setprofile(None)
        os._exit(0)
    os.close(writer)
    if point is None:
        time.sleep(random.uniform(0, 0.06))
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(reader, "rb") as pipe:
        said = [json.loads(line) for line in pipe]
    _, status = os.waitpid(pid, 0)
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0, said


def main(folder: Path, name: str, *how: str) -> None:
    """Kill a script at every point, or at random times; the outcomes go to `outcomes.json`."""
    script = {"create": create, "work": work}[name]
    template = folder / "template"
    template.mkdir()
    if script is work:
        prepared(template)
    outcomes = []
    for point in itertools.count():
        place = folder / str(point)
        shutil.copytree(template, place)
        lived, said = child(script, place, None if how else point)
        outcomes.append({"folder": str(place), "lived": lived, "said": said})
        if point == 40 if how else lived:
            break
    (folder / "outcomes.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
