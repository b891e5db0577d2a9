"""Where a real site keeps what: one folder of the agent's user, with two that the SuperNode's group may enter.

site.yaml  policy.yaml       what the steward decides; the agent's user alone
ledger.db  ledger.db.mark    what was spent
ledger.db.sides-...          who was trained on and who tested on, as salted hashes
answers/  outbox/            what was answered, and releases until they are fetched
audit.jsonl                  every request, decision and refusal
control.sock                 the steward's commands to the running agent
run/agent.sock               what the SuperNode's user reaches of the agent
node/                        what the SuperNode's user has: its key, whom it calls, and Flower's own files
"""

from dataclasses import dataclass
from pathlib import Path

from cadp_fl.errors import InputError

__all__ = ["NodeFolder", "SiteFolder", "check_socket"]

MAX_SOCKET_PATH = 100
"""Bytes of a socket's path that every system takes."""


@dataclass(frozen=True)
class NodeFolder:
    """What a site's SuperNode needs, and all that its user can read.

    Attributes:
        path: of the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """Whom the SuperNode calls, and where the agent's socket is."""
        return self.path / "node.yaml"

    @property
    def key(self) -> Path:
        """The SuperNode's private key, made at the site."""
        return self.path / "node.key"

    def public_key(self, site: str) -> Path:
        """Return the path of the public key, which goes to the coordinator."""
        return self.path / f"{site}.pub"

    @property
    def certificates(self) -> Path:
        """The certificates that sign the coordinator's (PEM), where the invitation brought some."""
        return self.path / "coordinator.crt"

    @property
    def flower(self) -> Path:
        """Flower's own files (FLWR_HOME); the SuperNode's user writes there."""
        return self.path / "flower"


@dataclass(frozen=True)
class SiteFolder:
    """What a site's agent has.

    Attributes:
        path: of the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The site's own settings."""
        return self.path / "site.yaml"

    @property
    def policy(self) -> Path:
        """What the steward allows."""
        return self.path / "policy.yaml"

    @property
    def ledger(self) -> Path:
        """What was promised and spent."""
        return self.path / "ledger.db"

    @property
    def answers(self) -> Path:
        """Answers, which are sent again where they are asked for again."""
        return self.path / "answers"

    @property
    def outbox(self) -> Path:
        """Releases that were made."""
        return self.path / "outbox"

    @property
    def audit(self) -> Path:
        """Every request, decision and refusal, a JSON value a line."""
        return self.path / "audit.jsonl"

    @property
    def control(self) -> Path:
        """The socket for the steward's commands to the running agent."""
        return self.path / "control.sock"

    @property
    def socket(self) -> Path:
        """The socket that the SuperNode's user reaches."""
        return self.path / "run" / "agent.sock"

    @property
    def node(self) -> NodeFolder:
        """What the SuperNode's user has."""
        return NodeFolder(self.path / "node")

    def check(self) -> None:
        """Check that this is a site's folder, and that its sockets can be opened.

        Raises:
            InputError: it is none, or its path is too long for a socket.
        """
        if not self.config.is_file():
            raise InputError(
                f"A site's folder holds site.yaml. '{self.path}' does not; make one with cadp-fl site init, or check "
                "the path."
            )
        check_socket(self.socket)


def check_socket(path: Path) -> None:
    """Check that a socket can have a path.

    Raises:
        InputError: it is too long.
    """
    if (length := len(bytes(path.absolute()))) > MAX_SOCKET_PATH:
        raise InputError(
            f"A socket's path has at most {MAX_SOCKET_PATH} bytes. '{path.absolute()}' has {length}; move the site's "
            "folder to a shorter path, such as /srv/cadp-fl."
        )
