"""Agents for tests: a rehearsal's site, made in a folder and served in a thread or in a process of its own."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cadp_fl.config import Invitation, PolicyConfig, SiteConfig, parse
from cadp_fl.deployment.site_setup import make_site
from cadp_fl.errors import AgentError
from cadp_fl.site.agent import Agent, command
from cadp_fl.site.folder import SiteFolder

STUDY = """
name: rehearsal
seed: 7
noise: seeded
device: cpu
data: {source: digits}
sites: {count: 3, names: [north, east, south]}
release: {clip_norm: 4.0, latent_dims: 16, labels: public}
flow: {warm_start: moments, dense: {blocks: 0}}
methods: [cadp]
budget: {epsilon: 3.0, delta: 1.0e-5, unit: record}
"""

POLICY: dict[str, Any] = {
    "population": "digits",
    "unit": "record",
    "epsilon": 10,
    "delta": 1e-4,
    "large_delta": True,
    "labels": "public",
    "made_flows": True,
    "review": False,
    "min_class_units": 0,
    "evaluation": {"exact": True, "epsilon": 10, "delta": 5e-4},
}


def make(path: Path, *, name: str = "north", group: str | None = None, **policy: Any) -> SiteFolder:
    """Make the folder of one of the rehearsal's sites."""
    study = path.parent / "study.yaml"
    study.write_text(STUDY)
    config = parse(SiteConfig, {"site": name, "rehearsal": str(study), "device": "cpu", "group": group})
    invitation = parse(Invitation, {"federation": "test", "address": "localhost:9443"})
    return make_site(path, config, parse(PolicyConfig, {**POLICY, **policy}), invitation).folder


@contextlib.contextmanager
def served(folder: SiteFolder, **options: Any) -> Iterator[Agent]:
    """Serve a folder in a thread of this process."""
    agent = Agent(folder, **options)
    thread = threading.Thread(target=agent.serve)
    thread.start()
    try:
        wait_for(folder)
        yield agent
    finally:
        agent.stop()
        thread.join(timeout=30)
    assert not thread.is_alive()


def start(folder: SiteFolder, *options: str, python: str = sys.executable, **popen: Any) -> "subprocess.Popen[str]":
    """Serve a folder in a process of its own, and return once it listens."""
    process = subprocess.Popen(
        [python, "-m", "cadp_fl.cli.main", "site", "serve", str(folder.path), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=popen.pop("env", dict(os.environ)),
        **popen,
    )
    wait_for(folder, process)
    return process


def wait_for(folder: SiteFolder, process: "subprocess.Popen[str] | None" = None) -> None:
    """Return when the agent of a folder answers."""
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(AgentError):
            command(folder, "status")
            return
        assert time.monotonic() < deadline, f"no agent answers at {folder.path}"
        if process is not None and process.poll() is not None:
            with process:
                raise AssertionError(process.stdout.read() if process.stdout else "the agent ended")
        time.sleep(0.02)
