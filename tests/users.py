"""Two system users for tests: the agent's and the SuperNode's. Only root can be both.

A Python of root's own, below /root, can be started by nobody else. The system's Python of the same version then stands
in for it, in an environment that shows the same packages.
"""

import atexit
import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import pytest

AGENT, NODE, GROUP = 64_101, 64_102, 64_103
"""User of the agent, user of the SuperNode, and the group that both are in: numbers that no account has."""

ROOT = Path(__file__).resolve().parents[1]


def as_user(uid: int) -> dict[str, Any]:
    """Return the arguments of a process that runs as a user and in the shared group."""
    return {"user": uid, "group": uid, "extra_groups": [GROUP], "umask": 0o077}


@functools.cache
def scripts_of_all() -> Path | None:
    """Return a folder with a Python, and the commands of its packages, that every user can start; None if none can."""
    ours = Path(sys.executable).parent
    if _starts(ours / Path(sys.executable).name):
        return ours
    system = Path(f"/usr/bin/python3.{sys.version_info.minor}")
    if not system.exists():
        return None
    folder = Path(tempfile.mkdtemp(prefix="cadp-python-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)
    subprocess.run([system, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    scripts = folder / "venv" / "bin"
    packages = folder / "venv" / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    shown = [sysconfig.get_path("purelib"), str(ROOT)]
    (packages / "shown.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in shown))
    for name in ("cadp-fl", "flower-supernode", "flower-superexec", "flwr-clientapp", "flwr"):
        if (ours / name).exists():
            _, _, text = (ours / name).read_text().partition("\n")
            (scripts / name).write_text(f"#!{scripts / 'python'}\n{text}")
            (scripts / name).chmod(0o755)
    return scripts if _starts(scripts / "python") else None


def _starts(python: Path) -> bool:
    try:
        code = "import cadp_fl.cli.main, torch, flwr"
        done = subprocess.run([python, "-c", code], **as_user(NODE), capture_output=True, cwd="/", timeout=120)
    except OSError:
        return False
    return done.returncode == 0


def skip_unless_two() -> Path:
    """Return the folder of a Python that both users can start, or skip the test."""
    if os.geteuid() != 0:
        pytest.skip("only root starts processes of two users")
    scripts = scripts_of_all()
    if scripts is None:
        pytest.skip("other users than root cannot read this Python or its packages")
    return scripts


def folder_of(path: Path, uid: int) -> Path:
    """Make a folder of a user that others may pass through."""
    path.mkdir()
    os.chown(path, uid, GROUP)
    path.chmod(0o711)
    return path
