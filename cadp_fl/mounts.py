"""What a path lies on: SQLite's log needs a local disk, whose locks and mapped memory all processes share."""

import os
from pathlib import Path

import psutil

__all__ = ["network_file_system"]

_NETWORK = {"9p", "afs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "smb3", "smbfs", "virtiofs"}


def network_file_system(path: Path) -> str | None:
    """Return the type of the network's file system that a path lies on, or will lie on; None if there is none."""
    real = os.path.realpath(path)
    found, kind = "", ""
    for mount in psutil.disk_partitions(all=True):
        above = mount.mountpoint.rstrip("/") + "/"
        if f"{real}/".startswith(above) and len(above) >= len(found):  # of equals, the one that was mounted last
            found, kind = above, mount.fstype
    return kind if kind in _NETWORK or kind.startswith("fuse.") else None
