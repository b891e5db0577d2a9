"""The site agent: the process that a hospital starts, and that no server can talk past.

It alone reads records, policy, ledger and outbox. The code that a server ships to the hospital's SuperNode reaches its
socket and nothing else: one request a connection, answered or refused by a number. The steward's own commands come by a
second socket, which the agent's user alone may open.
"""

import contextlib
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cadp_fl
from cadp_fl.config import SiteConfig, load_site
from cadp_fl.ending import Ending
from cadp_fl.errors import AgentError, CadpError, EditedPolicyError, ExchangeError, ReviewError, SeededNoiseError
from cadp_fl.locks import hold
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.site.audit_log import MAX_TEXT, AuditLog, Repeats, describe_error
from cadp_fl.site.client import MAX_REPLY_BYTES, ask
from cadp_fl.site.folder import SiteFolder
from cadp_fl.site.groups import gid_of
from cadp_fl.site.open_site import check_name, mark_of, open_site, read_records
from cadp_fl.site.permissions import check_closed
from cadp_fl.site.policy_file import changed_totals, changes_of, in_words, read_policy, sha256_of, totals_of
from cadp_fl.site.protocol import Reply, Request
from cadp_fl.site.wire import WireError, pack, receive, send, unpack

__all__ = ["Agent", "check_in_force", "command"]

MOST_CONNECTIONS = 4
"""At each socket; others wait. Each may hold one request in memory."""

READ_SECONDS = 120.0
"""In which a request has come whole: it comes from the same machine."""

SEND_SECONDS = 600.0
COMMAND_SECONDS = 600.0
STATUS_SECONDS = 5.0

_ACTION = re.compile(r"[a-z_]{1,40}")
_NAME = re.compile(r"[A-Za-z0-9._/-]{0,200}")


class Agent:
    """One site behind two sockets.

    Args:
        folder: of the site.
        seeded_noise: seed of reproducible noise, which protects nothing; only a policy for tests allows it.
        announce: is called with a line of text on everything that happens.

    Raises:
        CadpError: config, policy, ledger and records do not fit together, or another agent serves the folder.
    """

    def __init__(
        self,
        folder: SiteFolder,
        *,
        seeded_noise: int | None = None,
        announce: Callable[[str], None] = lambda line: None,
    ) -> None:
        folder.check()
        self._folder, self._announce = folder, announce
        self._config: SiteConfig = load_site(folder.config)
        self.lock_file = hold(
            folder.path / "agent.lock",
            AgentError(f"A site has one agent. Another one serves '{folder.path}' already; stop that one first."),
        )
        check_name(folder, self._config)
        check_closed(folder, mark_of(folder, self._config), gid_of(self._config.group))
        self._log, self._repeats = AuditLog(folder.audit), Repeats()
        policy, self._policy_sha256 = read_policy(folder.policy)
        self._policy = policy
        if seeded_noise is not None and not policy.seeded_noise:
            raise SeededNoiseError(
                "Noise comes from the operating system's entropy (policy: seeded_noise). Found a seed; leave out "
                "--seeded-noise."
            )
        root = NoiseSource.from_entropy() if seeded_noise is None else NoiseSource.from_seed(seeded_noise)
        self._noise = root.child("site", self._config.site)
        self._source = read_records(self._config)
        self._site = open_site(folder, self._config, policy, self._source, noise=self._noise)
        self._site.register_sides()
        self._one_at_a_time = threading.Lock()
        self._busy_with: tuple[str, float] | None = None
        self._answered, self._since = 0, time.time()
        self._ends = Ending()

    @property
    def name(self) -> str:
        """Of the site."""
        return self._config.site

    def serve(self) -> None:
        """Answer at both sockets until `stop` is called and the request at hand is answered."""
        folder = self._folder
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, self.lock_file)
            run = folder.socket.parent
            run.mkdir(mode=0o700, exist_ok=True)
            group = gid_of(self._config.group)
            if group is not None:
                os.chown(run, -1, group)
                run.chmod(0o750)
            requests = stack.enter_context(_listening(folder.socket, group))
            commands = stack.enter_context(_listening(folder.control, None))
            self._log_start()
            self._announce(f"Site '{self.name}' is ready at {folder.socket}.")
            threads = [
                threading.Thread(target=self._accept, args=(commands, self._obey), daemon=True),
                threading.Thread(target=self._accept, args=(requests, self._reply), daemon=True),
            ]
            for thread in threads:
                thread.start()
            self._ends.wait()
            with self._one_at_a_time:  # what was begun is answered, or kept to be asked for again
                for event, count in self._repeats.left().items():
                    self._log.write("repeats", event=event, repeats_before=count)
                self._log.write("stop", site=self.name)

    def _log_start(self) -> None:
        """Write down which policy holds from now on, and say so where it is another one than an agent's before."""
        before, totals = self._log.last("start", "reload"), totals_of(self._policy)
        self._log.write(
            "start",
            site=self.name,
            library=cadp_fl.__version__,
            policy=self._policy_sha256,
            totals=totals,
            uid=os.getuid(),
        )
        if before.get("policy", self._policy_sha256) != self._policy_sha256:
            raised = changed_totals(before.get("totals", {}), totals)
            named = in_words({"keys": sorted(raised), "totals": raised}) if raised else "No total of it changed."
            self._announce(f"policy.yaml was edited since an agent last read it, and holds from now on. {named}")

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._ends.is_set()

    def stop(self) -> None:
        """Let `serve` return."""
        self._ends.set()

    def _accept(self, listener: socket.socket, answer: Callable[[socket.socket], None]) -> None:
        """Answer each connection in a thread of its own, a few at a time."""
        free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        while not self._ends.is_set():
            free.acquire()
            try:
                connection, _ = listener.accept()
            except OSError:
                free.release()
                continue
            threading.Thread(target=self._serve_one, args=(connection, answer, free), daemon=True).start()

    def _serve_one(
        self, connection: socket.socket, answer: Callable[[socket.socket], None], free: threading.BoundedSemaphore
    ) -> None:
        try:
            with connection:
                answer(connection)
        except (OSError, WireError):
            self._announce("A connection ended before its request was read, or its answer sent.")
        except CadpError as error:  # the audit log cannot be written to: nothing leaves
            self._announce(str(error))
        finally:
            free.release()

    def _reply(self, connection: socket.socket) -> None:
        """Answer one request of the SuperNode's user."""
        peer = _peer(connection)
        received = receive(connection, limit=self._config.request_bytes, seconds=READ_SECONDS)
        start = time.monotonic()
        details: dict[str, Any] = {"peer": peer, "bytes_in": len(received)}
        try:
            request = _request_in(received)
            details |= {
                "action": request.action,
                "run": request.run,
                "id": request.id,
                "method": _short(request.settings.get("method")),
            }
            if request.action == "fetch":
                details["event"] = _short(request.settings.get("event_id"))
            del received
            with self._one_at_a_time:
                reply, outcome = self._answer(request)
                if request.action == "describe" and self._site.objection:
                    details["would_refuse"] = self._site.objection[:MAX_TEXT]
            message = pack({"reply": dict(reply.content)}, reply.arrays, limit=MAX_REPLY_BYTES)
        except Exception as error:  # whatever it is, a number is all that leaves
            described = describe_error(error)
            outcome = "refused" if isinstance(error, CadpError) else "failed"
            details |= described
            message = pack({"error": described["code"]}, {}, limit=MAX_REPLY_BYTES)
        seconds = round(time.monotonic() - start, 3)
        repeats = self._repeats_of(details)
        if repeats is not None:
            if repeats:
                details["repeats_before"] = repeats
            self._log.write("request", outcome=outcome, **details, bytes_out=len(message), seconds=seconds)
            self._announce(
                f"{details.get('action', 'request')} {details.get('id', '')}: {outcome}"
                + (f" (code {details['code']})" if "code" in details else "")
                + f", {seconds:.1f} s"
            )
        connection.settimeout(SEND_SECONDS)
        send(connection, message)

    def _repeats_of(self, details: Mapping[str, Any]) -> int | None:
        """Return how often what stands in the log was repeated before a request; None if the request repeats it too.

        That is so of a release alone which waits for its steward, or was denied.
        """
        if "event" not in details:
            return 0
        waits = details.get("code") == ReviewError.code
        state = (details["text"], details["run"], details["peer"].get("uid")) if waits else None
        return self._repeats.note(details["event"], state)

    def _answer(self, request: Request) -> tuple[Reply, str]:
        """Return the answer to a request, and whether it was `answered` now or is `repeated`."""
        if self._ends.is_set():
            raise AgentError("A site's agent answers while it runs. It is about to stop; ask again.")
        self._busy_with = (request.action, time.time())
        try:
            if sha256_of(self._folder.policy) != self._policy_sha256:
                raise EditedPolicyError(
                    "A policy holds from the steward's cadp-fl site reload on. Found policy.yaml edited since; reload "
                    "it, or put it back."
                )
            known = self._site.answered_before(request)
            if known is not None:
                return known, "repeated"
            reply = self._site.answer(request)
            self._answered += 1
            return reply, "answered"
        finally:
            self._busy_with = None

    def _obey(self, connection: socket.socket) -> None:
        """Carry out one command of the steward, whose texts may say everything."""
        peer = _peer(connection)
        content, _ = unpack(receive(connection, limit=1 << 16, seconds=READ_SECONDS))
        commands = {"status": self._status, "reload": self._reload}
        name = str(content.get("command"))
        try:
            if name not in commands:
                raise ExchangeError(f"A command is one of: {', '.join(commands)}. Found {name[:40]!r}.")
            reply: Mapping[str, Any] = {"told": commands[name](peer)}
        except CadpError as error:
            self._log.write(name[:40], peer=peer, outcome="refused", **describe_error(error))
            reply = {"error": error.code, "text": str(error)}
        send(connection, pack(reply, {}, limit=1 << 20))

    def _status(self, _peer: Mapping[str, int]) -> dict[str, Any]:
        """Return what the agent is doing."""
        busy = self._busy_with
        return {
            "site": self.name,
            "library": cadp_fl.__version__,
            "pid": os.getpid(),
            "since": self._since,
            "answered": self._answered,
            "busy_with": None if busy is None else {"action": busy[0], "since": busy[1]},
            "policy": self._policy_sha256,
            "policy_in_force": sha256_of(self._folder.policy) == self._policy_sha256,
        }

    def _reload(self, peer: Mapping[str, int]) -> dict[str, Any]:
        """Put the policy that stands in the file into force, once the request at hand is answered."""
        policy, sha256 = read_policy(self._folder.policy)
        if self._noise.kind == "seeded" and not policy.seeded_noise:
            raise SeededNoiseError(
                "The new policy allows no seeded noise, and this agent draws such noise; start it again without "
                "--seeded-noise."
            )
        with self._one_at_a_time:
            site = open_site(self._folder, self._config, policy, self._source, noise=self._noise)
            before, changes = self._policy_sha256, changes_of(self._policy, policy)
            self._log.write(
                "reload",
                peer=peer,
                outcome="done",
                before=before,
                policy=sha256,
                totals=totals_of(policy),
                changes=changes,
            )
            self._site, self._policy, self._policy_sha256 = site, policy, sha256
        said = in_words(changes) if before != sha256 else "Nothing was edited."
        self._announce(f"The policy was read again, and is in force. {said}")
        return {"before": before, "policy": sha256, "changed": before != sha256, "changes": changes}


def check_in_force(folder: SiteFolder, sha256: str) -> None:
    """Check that a site's policy is the one that holds: that of its agent, or else the last that an agent read.

    Args:
        sha256: of policy.yaml.

    Raises:
        EditedPolicyError: it was edited since.
    """
    try:
        holds = command(folder, "status", timeout=STATUS_SECONDS)["policy"]
    except AgentError:
        holds = AuditLog(folder.audit).last("start", "reload").get("policy")
    if holds not in (None, sha256):
        raise EditedPolicyError(
            "A policy holds from the steward's cadp-fl site reload on. Found policy.yaml edited since; reload it, "
            "start the agent if none runs, or put it back."
        )


def command(folder: SiteFolder, name: str, *, timeout: float = COMMAND_SECONDS) -> Mapping[str, Any]:
    """Give a running agent a steward's command, status or reload, and return what it answers.

    Args:
        timeout: seconds to wait for it; a reload waits for the answer at hand.

    Raises:
        AgentError: no agent runs for the folder, or it is another user's.
        CadpError: it refuses.
    """
    content, _ = ask(folder.control, pack({"command": name}, {}, limit=1 << 16), timeout=timeout)
    answer: Mapping[str, Any] = content["told"]
    return answer


def _request_in(data: bytes | bytearray) -> Request:
    """Return the request that bytes hold.

    Raises:
        ExchangeError: they hold none.
    """
    try:
        content, arrays = unpack(data)
    except WireError as error:
        raise ExchangeError(f"A request is a message of the agent's form. This one is not: {error}.") from error
    match content:
        case {"action": str() as action, "settings": dict() as settings, "run": str() as run, "id": str() as name}:
            if len(content) == 4 and _ACTION.fullmatch(action) and _NAME.fullmatch(run) and _NAME.fullmatch(name):
                return Request(action, settings, arrays, run, name)  # type: ignore[arg-type]  # the site knows its actions
    raise ExchangeError("A request has an action, settings, a run and an id. Found something else; compare versions.")


def _short(value: object) -> str:
    return value[:80] if isinstance(value, str) else ""


@contextlib.contextmanager
def _listening(path: Path, group: int | None) -> Iterator[socket.socket]:
    """Yield a socket that listens at a path; its user may connect, and a group if one is given."""
    path.unlink(missing_ok=True)  # of an agent that was killed: this one holds the lock
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        mask = os.umask(0o177)  # from its first moment on, nobody else connects
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        if group is not None:
            os.chown(path, -1, group)
            path.chmod(0o660)
        listener.listen(MOST_CONNECTIONS)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _peer(connection: socket.socket) -> dict[str, int]:
    """Return who is at the other end, as the kernel says; nothing where it says nothing."""
    if not hasattr(socket, "SO_PEERCRED"):  # Linux has it
        return {}
    pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return {"pid": pid, "uid": uid, "gid": gid}
