"""A site behind the socket of its agent, as code that a server ships may see it.

It can ask, and nothing else: whatever the agent refuses, it cannot obtain. It imports neither torch nor data code.
"""

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cadp_fl.errors import AgentError, CadpError, ExchangeError
from cadp_fl.site.protocol import Reply, Request
from cadp_fl.site.wire import WireError, pack, receive, send, unpack

__all__ = ["AgentClient", "ask"]

MAX_REPLY_BYTES = 4 << 30


class AgentClient:
    """A `SitePort` whose site is in another process, which runs under another user.

    Args:
        path: of the agent's socket.
        timeout: seconds to wait for an answer; as long as it takes by default, since the agent trains.
    """

    def __init__(self, path: Path, *, timeout: float | None = None) -> None:
        self._path = path
        self._timeout = timeout

    def call(self, request: Request) -> Reply:
        """Ask the agent.

        Raises:
            AgentError: the agent does not answer.
            CadpError: it refuses; the error has the agent's code, and no other detail.
        """
        named = {"action": request.action, "settings": request.settings, "run": request.run, "id": request.id}
        try:
            message = pack(named, request.arrays, limit=MAX_REPLY_BYTES)
        except WireError as error:
            raise ExchangeError(f"A request is JSON and arrays of numbers. This one is not: {error}.") from error
        content, arrays = ask(self._path, message, timeout=self._timeout)
        if not isinstance(content.get("reply"), dict):
            raise ExchangeError("An agent answers with a reply or an error. Found neither; compare the versions.")
        return Reply(content["reply"], arrays)


def ask(path: Path, message: bytes, *, timeout: float | None = None) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Send a message to an agent's socket, and return the JSON and the arrays that it answers with.

    Raises:
        AgentError: nobody answers there.
        CadpError: the agent answers with an error.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(str(path))
            send(connection, message)
            content, arrays = unpack(receive(connection, limit=MAX_REPLY_BYTES))
    except OSError as error:
        raise AgentError(
            f"A site's agent answers at its socket. At '{path}' it does not ({error.strerror or error}); start it with "
            "cadp-fl site serve."
        ) from error
    except WireError as error:
        raise AgentError(
            f"A site's agent sends whole answers. This one is none: {error}; see its audit log."
        ) from error
    if "error" in content:
        code = content["error"]
        raise CadpError.named(code if isinstance(code, int) else CadpError.code, str(content.get("text", ""))[:1000])
    return content, arrays
