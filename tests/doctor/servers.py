"""Coordinators for tests: what sites find at an address, whether it is one or not."""

import contextlib
import http.server
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from email.utils import formatdate
from pathlib import Path

from cadp_fl.deployment.certificates import CertifiedKey, new_authority, new_server_key

FLEET = "/v1/fleet/get-run"
DOOR = {FLEET: (401, True)}
"""A SuperLink behind a door: the status by path, and whether the SuperLink itself says so. All else is refused."""


@contextlib.contextmanager
def serving(
    folder: Path,
    answers: dict[str, tuple[int, bool]] | None = None,
    *,
    hosts: Sequence[str] = ("localhost",),
    behind: float = 0.0,
    plain: bool = False,
    authority: CertifiedKey | None = None,
) -> Iterator[tuple[str, Path]]:
    """Serve at a free port; yields the address and the file of the authority that signed the certificate.

    Args:
        answers: by path; others are refused as nginx does.
        behind: seconds that the server's clock is behind this one.
        plain: speaks no TLS.
    """
    answered = DOOR if answers is None else answers

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(403, b"")

        def do_POST(self) -> None:
            status, is_superlinks = answered.get(self.path, (403, False))
            self._answer(status, b'{"detail": "Unauthorized"}' if is_superlinks else b"<html>no</html>")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return formatdate(time.time() - behind, usegmt=True)

        def log_message(self, *_arguments: object) -> None: ...

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_arguments: object) -> None: ...

    above = authority or new_authority("test")
    own = new_server_key(above, list(hosts))
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in (("ca.crt", above.certificate), ("own.crt", own.certificate), ("own.key", own.key)):
        (folder / name).write_bytes(data)
    server = Server(("127.0.0.1", 0), Handler)
    if not plain:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "own.crt", folder / "own.key")
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"localhost:{server.server_address[1]}", folder / "ca.crt"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
