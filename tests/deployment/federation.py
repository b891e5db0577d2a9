"""A real federation on this machine, run by the commands that docs/deploy.md prints."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.users import AGENT, GROUP, NODE, as_user, folder_of, scripts_of_all

ROOT = Path(__file__).resolve().parents[2]
SITES = ("north", "east", "south")
TWO_USERS = "south"
"""The site whose agent and SuperNode run as two users of the system, where root runs the tests."""

PORT = 8443
"""Which docs/deploy.md leaves at its default."""

READY = {"coordinator serve": "is served at", "site serve": "is ready", "site connect": "is connected"}
"""What a command that stays says once it is there."""


def printed(block: str) -> list[str]:
    """Return the commands of a block of docs/deploy.md."""
    text = (ROOT / "docs" / "deploy.md").read_text()
    match = re.search(rf"<!-- run: {block} -->\n```bash\n(.*?)```", text, re.S)
    assert match, f"docs/deploy.md has no block {block}"
    return match.group(1).strip().splitlines()


class Federation:
    """Runs commands in a folder of its own, and keeps those that stay."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._staying: dict[tuple[str, str], subprocess.Popen[str]] = {}
        self._scripts = scripts_of_all() if os.geteuid() == 0 else None
        (folder / "configs").symlink_to(ROOT / "configs")

    @property
    def has_two_users(self) -> bool:
        """Whether one site's agent and SuperNode run as two users."""
        return self._scripts is not None

    def run(self, command: str, *, site: str = "", fails: bool = False) -> str:
        """Run a command, and return what it printed; one that stays is waited for until it is ready."""
        command = command.replace("$SITE", site)
        program = next((name for name in READY if f"cadp-fl {name}" in command), None)
        if program is not None:
            return self._start(program, command, site)
        done = subprocess.run(
            self._words(command, site), **self._place(command, site), capture_output=True, text=True, timeout=600
        )
        said = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, f"{command}: {done.returncode}\n{said}"
        if "site init" in command and self._is_apart(site):
            (self.folder / site).symlink_to(self.folder / "apart" / site)
        return said

    def begin(self) -> None:
        """Run what the page prints until all sites are connected."""
        for command in printed("coordinator"):
            self.run(command)
        init, serve, connect, *_ = printed("site")
        for site in SITES:
            self.run(init, site=site)
            self.run(serve, site=site)
        self.run(printed("study")[0])
        for site in SITES:
            self.run(connect, site=site)

    def background(self, command: str) -> "subprocess.Popen[str]":
        """Start a command that ends by itself."""
        log = (self.folder / "background.log").open("w")
        with log:
            process = subprocess.Popen(
                self._words(command, ""), **self._place(command, ""), stdout=log, stderr=subprocess.STDOUT, text=True
            )
        self._staying["background", str(process.pid)] = process
        return process

    def stop(self, program: str, site: str = "", *, kill: bool = False) -> str:
        """Stop a command that stays, and return what it had printed."""
        process = self._staying.pop((program, site))
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
        return said

    def close(self) -> None:
        """Stop all that stays, the last first."""
        for program, site in reversed(list(self._staying)):
            with contextlib.suppress(Exception):
                self.stop(program, site)

    def _start(self, program: str, command: str, site: str) -> str:
        log = self.folder / f"{program.replace(' ', '-')}-{site}.log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                self._words(command, site),
                **self._place(command, site),
                stdout=stream,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self._staying[program, site] = process
        deadline = time.monotonic() + 90
        while READY[program] not in (said := log.read_text()):
            assert process.poll() is None, f"{command} ended: {said}"
            assert time.monotonic() < deadline, f"{command} is not ready: {said}"
            time.sleep(0.1)
        return said

    def _is_apart(self, site: str) -> bool:
        return site == TWO_USERS and self.has_two_users

    def _words(self, command: str, site: str) -> list[str]:
        scripts = self._scripts if self._is_apart(site) else Path(sys.executable).parent
        assert scripts is not None
        words = shlex.split(command)
        assert words[0] == "cadp-fl"
        if self._is_apart(site) and "init" in words:
            words += ["--group", str(GROUP)]
        return [str(scripts / "cadp-fl"), *words[1:]]

    def _place(self, command: str, site: str) -> dict[str, object]:
        """Return where a command runs, and as whom."""
        environment = {**os.environ, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
        if not self._is_apart(site):
            return {"cwd": self.folder, "env": environment}
        apart = self.folder / "apart"
        if not apart.exists():
            self.folder.chmod(0o711)
            folder_of(apart, AGENT)
            (apart / "hub").mkdir()
            shutil.copy(self.folder / "hub" / "invitation.yaml", apart / "hub")
            (apart / "hub" / "invitation.yaml").chmod(0o644)
            (apart / "configs").symlink_to(ROOT / "configs")
        user = NODE if "site connect" in command else AGENT
        assert self._scripts is not None
        environment |= {"HOME": str(apart), "PATH": f"{self._scripts}{os.pathsep}{os.environ['PATH']}"}
        return {"cwd": apart, "env": environment, **as_user(user)}


def _is_free(port: int) -> bool:
    """Return whether nothing listens at a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def federation() -> Iterator[Federation]:
    """Yield a federation of which nothing runs yet, in a folder whose path is short enough for sockets."""
    if not _is_free(PORT):
        pytest.skip(f"something listens at port {PORT}, which docs/deploy.md leaves at its default")
    folder = Path(tempfile.mkdtemp(prefix="cadp-"))
    made = Federation(folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)
