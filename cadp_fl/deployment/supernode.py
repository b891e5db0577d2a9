"""A site's SuperNode as one child: checked in words before it starts, watched while it runs, explained when it ends."""

import contextlib
import datetime
import json
import os
import re
import shlex
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO, Literal

from cadp_fl.config import NodeConfig, load_node
from cadp_fl.deployment.probe import Finding, probe, system_authorities
from cadp_fl.ending import Ending, asked_to_end
from cadp_fl.errors import CadpError, InputError
from cadp_fl.locks import locked
from cadp_fl.outputs import check_unicode, replaced_file
from cadp_fl.site.folder import NodeFolder, SiteFolder
from cadp_fl.study.environment import flower_environment, free_port, printed
from cadp_fl.study.processes import ProcessTracker, ask_to_end
from cadp_fl.study.toml import toml_string

__all__ = ["Connection", "Supernode", "command", "connect", "print_command"]

STOP_SECONDS = 15.0
PAUSE_SECONDS = 0.2
AGAIN_SECONDS = 10.0
LOOK_SECONDS = 30.0
MAX_LOG_BYTES = 10 << 20
MAX_LINE, LINES = 4096, 40
BEHIND_SECONDS, AHEAD_SECONDS = 300, 5
"""What Flower allows a node's clock to be behind and ahead of the SuperLink's."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
State = Literal["connecting", "connected", "refused", "stopped"]


class Connection:
    """What connection.json says of a SuperNode: its state, since when, its process, and why.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._said: dict[str, object] = {}
        self._lock = threading.Lock()

    @property
    def state(self) -> str:
        """connecting, connected, refused or stopped; nothing before it is known."""
        return str(self._said.get("state", ""))

    def say(self, state: State, *, pid: int | None = None, reason: str = "") -> None:
        """Write down a state; it is since now, if it is another than before."""
        with self._lock:
            if self.state == state and self._said["pid"] == pid and self._said["reason"] == reason:
                return
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            since = self._said["since"] if self.state == state else now
            self._said = {"state": state, "since": since, "pid": pid, "reason": reason}
            with replaced_file(self._path) as temporary:
                temporary.write_text(json.dumps(self._said) + "\n", encoding="utf-8")


def command(folder: NodeFolder, node: NodeConfig) -> list[str]:
    """Return what runs a site's SuperNode."""
    settings = f"agent={toml_string(str(node.socket))} site={toml_string(node.site)}"
    return [
        *("flower-supernode", "--superlink", node.address, "--root-certificates", str(_authorities(folder))),
        *("--auth-supernode-private-key", str(folder.key.absolute()), "--node-config", settings),
        *("--port", str(node.port or free_port())),
    ]


def print_command(folder: NodeFolder) -> str:
    """Return the environment and the command that run a site's SuperNode, for a unit of one's own."""
    lines = printed(flower_environment(folder.flower.absolute()))
    return "\n".join([*lines, "", shlex.join(command(folder, load_node(folder.config)))])


def connect(folder: NodeFolder, *, announce: Callable[[str], None]) -> None:
    """Keep a site connected until this process is asked to end (SIGTERM, SIGINT or SIGHUP).

    A coordinator that does not answer is waited for.

    Args:
        announce: is called with each sentence for whoever started it.

    Raises:
        InputError: the folder lacks what a SuperNode needs, or somebody who is not to be trusted answers.
        CadpError: the SuperNode ended by itself, for the reason that is said.
    """
    check_unicode(folder.path.absolute(), "A node's folder")
    node = load_node(folder.config)
    _check(folder, node, announce)
    refusal = f"A site has one SuperNode. '{folder.path}' has one that runs; leave that one, or end it first."
    with asked_to_end() as asked, locked(folder.flower / "connect.lock", refusal):
        connection = Connection(folder.flower / "connection.json")
        try:
            connection.say("connecting", pid=os.getpid())
            if _wait_for_coordinator(folder, node, connection, asked, announce):
                Supernode(folder, node, connection, announce).run(asked)
        except CadpError as error:
            connection.say("refused", reason=str(error))
            raise
        connection.say("stopped")


class Supernode:
    """The child, and what it says."""

    def __init__(
        self, folder: NodeFolder, node: NodeConfig, connection: Connection, announce: Callable[[str], None]
    ) -> None:
        self._folder, self._node, self._connection, self._announce = folder, node, connection, announce
        self.lines: deque[str] = deque(maxlen=LINES)
        self._log = folder.flower / "supernode.log"
        self._activated = False
        self._next_look = 0.0

    def run(self, asked: Ending) -> None:
        """Run it until this process is asked to end.

        Raises:
            CadpError: it ended by itself.
        """
        _shorten(self._log)
        tracker = ProcessTracker()
        tracker.guard()
        flower = self._folder.flower
        environment = flower_environment(flower.absolute())
        process = tracker.start(command(self._folder, self._node), environment, folder=flower)
        assert process.stdout is not None, "a pipe"
        reader = threading.Thread(target=self._follow, args=(process.stdout, process.pid), daemon=True)
        reader.start()
        try:
            while not asked.wait(PAUSE_SECONDS):
                if process.poll() is not None:
                    break
        finally:
            ask_to_end(process, seconds=STOP_SECONDS)  # else it could not come back for a minute
            tracker.stop()
            reader.join(STOP_SECONDS)
        if not asked.is_set():
            raise CadpError(self.why(process.returncode))

    def _follow(self, stream: IO[bytes], pid: int) -> None:
        """Keep the log, and see from its lines whether the site is connected."""
        with self._log.open("a", encoding="utf-8") as log:
            for line in iter(lambda: stream.readline(MAX_LINE), b""):
                text = _COLOUR.sub("", line.decode("utf-8", errors="replace"))
                log.write(text)
                log.flush()
                self.lines.append(text.strip())
                self._hear(text, pid)

    def _hear(self, text: str, pid: int) -> None:
        if "SuperNode ID:" in text or (self._activated and "Connection successful after" in text):
            self._activated = True
            if self._connection.state != "connected":
                self._announce(f"'{self._node.site}' is connected to '{self._node.federation}'.")
            self._connection.say("connected", pid=pid)
        elif "Connection attempt failed" in text and time.monotonic() > self._next_look:
            finding = probe(self._node.address, _authorities(self._folder))
            self._next_look = time.monotonic() + LOOK_SECONDS
            reason = finding.sentence or "The connection failed, and is tried again."
            self._announce(reason)
            self._connection.say("connecting", pid=pid, reason=reason)

    def why(self, status: int) -> str:
        """Return why the SuperNode ended, in one sentence with the way out."""
        site, said = self._node.site, "\n".join(self.lines)
        public = self._folder.public_key(site)
        if "code: 2004" in said:
            return (
                f"The coordinator has not admitted this site's key; send it '{public}', and have it admit that. If it "
                "has, the last SuperNode was killed, and its key is taken again a minute later; connect then."
            )
        if "Exit Code: 606" in said:
            return f"Both sides of a federation have one version of Flower. They differ; see '{self._log}'."
        if "401 Unauthorized" in said or (self._activated and status == 0):
            return self._why_unauthorized(public)
        if "address already in use" in said.lower():
            return (
                "A SuperNode has its own port on this machine. That of node.yaml is taken; change it there, or leave "
                "it out for a free one."
            )
        if status < 0:
            return (
                f"A SuperNode runs until it is asked to end. It was killed by signal {-status}, which the system does "
                "where memory is short; connect again in a minute, when its key is taken again."
            )
        last = next((line for line in reversed(self.lines) if line), "it said nothing")
        return f"The SuperNode ended by itself with status {status} ('{last[:200]}'); see '{self._log}'."

    def _why_unauthorized(self, public: Path) -> str:
        finding = probe(self._node.address, _authorities(self._folder))
        if finding.ahead is not None and not -BEHIND_SECONDS < finding.ahead < AHEAD_SECONDS:
            way = "ahead of" if finding.ahead > 0 else "behind"
            return (
                f"A site's clock is at most {BEHIND_SECONDS} s behind the coordinator's, and {AHEAD_SECONDS} s ahead. "
                f"This machine's is {abs(finding.ahead):.0f} s {way} it; set it (by NTP), and connect again."
            )
        return (
            "The coordinator takes this site's key no longer: it removed the site, or its clock and this machine's "
            f"differ. Ask it; to be admitted again, the site needs a new key in place of '{public}'."
        )


def _check(folder: NodeFolder, node: NodeConfig, announce: Callable[[str], None]) -> None:
    """Check that this process can read and write what a SuperNode does; the agent may start later."""
    if os.access(own := SiteFolder(folder.path.parent).config, os.R_OK):
        announce(
            f"What a server sends runs as this user, who can read '{own}' and whatever the agent can: for real records "
            "the SuperNode has a user of its own (cadp-fl site init --group)."
        )
    if not os.access(folder.key, os.R_OK):
        raise InputError(
            f"A SuperNode reads the site's key. '{folder.key}' cannot be read by this user; run this as the user that "
            "the site's folder is set up for, or make the folder with cadp-fl site init."
        )
    try:
        folder.flower.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"A SuperNode has a folder for Flower's files. '{folder.flower}' cannot be made ({error.strerror}); make "
            "it, and give it to this user."
        ) from error
    if not os.access(folder.flower, os.W_OK):
        raise InputError(
            f"A SuperNode writes into its folder for Flower's files. This user cannot, into '{folder.flower}'; give it "
            "to this user."
        )
    try:
        runs = node.socket.is_socket()
    except PermissionError:  # the folder above it is closed to this user
        runs = True
    if not runs:
        announce(
            f"The site's agent does not run yet: there is no socket at '{node.socket}'. What the coordinator asks "
            "fails until it does (cadp-fl site serve)."
        )
    elif not os.access(node.socket, os.W_OK):
        announce(f"This user may not reach the site's agent at '{node.socket}'. Put it into the group of site.yaml.")


def _wait_for_coordinator(
    folder: NodeFolder,
    node: NodeConfig,
    connection: Connection,
    asked: Ending,
    announce: Callable[[str], None],
) -> bool:
    """Return whether a coordinator is there that is to be trusted; false where this process is asked to end first.

    Raises:
        InputError: somebody else is.
    """
    said = ""
    while not asked.is_set():
        finding: Finding = probe(node.address, _authorities(folder))
        if finding.kind == "found":
            return True
        if finding.kind == "refused":
            raise InputError(finding.sentence)
        if finding.sentence != said:
            said = finding.sentence
            announce(f"{said} It is tried again.")
            connection.say("connecting", pid=os.getpid(), reason=said)
        asked.wait(AGAIN_SECONDS)
    return False


def _authorities(folder: NodeFolder) -> Path:
    """Return the file of the authorities that sign the coordinator's certificate: the invitation's, or the system's."""
    own = folder.certificates.absolute()
    return own if own.is_file() else system_authorities()


def _shorten(log: Path) -> None:
    """Put a long log aside, in place of the one before."""
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > MAX_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
