"""Who may reach a site's files: the agent's user all, the SuperNode's group its part, and nobody else anything."""

from pathlib import Path

from cadp_fl.errors import InputError
from cadp_fl.site.folder import SiteFolder

__all__ = ["check_closed", "open_to_others"]


def open_to_others(folder: SiteFolder, mark: Path, gid: int | None) -> tuple[list[Path], str]:
    """Return the files that others may reach, and the change of mode that closes them.

    Args:
        folder: of the site.
        mark: of its ledger.
        gid: group of the SuperNode's user, which enters its part; None if it has no user of its own.
    """
    ledger = [folder.ledger.with_name(f"{folder.ledger.name}{suffix}") for suffix in ("", "-wal", "-shm")]
    private = [folder.config, folder.policy, *ledger, mark, folder.answers, folder.outbox, folder.audit, folder.control]
    node = folder.node
    shared = {
        folder.path: 0o067,
        folder.socket.parent: 0o027,
        node.path: 0o027,
        node.flower: 0o007,
        folder.socket: 0o007,
        node.key: 0o037,
    }
    closed = dict.fromkeys(private, 63) | {path: 0o077 if gid is None else bits for path, bits in shared.items()}
    found = [path for path, bits in closed.items() if path.exists() and path.stat().st_mode & bits]
    return found, "o-rwx,g-w" if set(found) <= set(shared) and gid is not None else "go-rwx"


def check_closed(folder: SiteFolder, mark: Path, gid: int | None) -> None:
    """Check that nobody else reaches a site's files: policy, ledger and audit log above all.

    Raises:
        InputError: somebody may.
    """
    found, bits = open_to_others(folder, mark, gid)
    if found:
        raise InputError(
            f"A site's files are its agent's alone, and the SuperNode's group has its part. Others may reach "
            f"'{found[0]}'; run chmod {bits} on it, and find out who did."
        )
