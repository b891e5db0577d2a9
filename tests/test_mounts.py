"""A path lies on the longest mount point above it, the last one of equals."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from cadp_fl.mounts import network_file_system

LOCAL = [("/", "ext4"), ("/srv", "xfs"), ("/dev/shm", "tmpfs")]


@pytest.mark.parametrize(
    ("mounts", "found"),
    [
        ([], None),
        ([("/srv/hospital", "nfs4")], "nfs4"),
        ([("/srv/hospital", "cifs"), ("/srv/hospital/disk", "ext4")], None),
        ([("/srv/hospital/disk", "fuse.sshfs")], "fuse.sshfs"),
        ([("/srv/hospital/disk", "fuseblk")], None),
        ([("/srv/hosp", "nfs")], None),
        ([("/srv/hospital/disk/below", "nfs")], None),
        ([("/srv/hospital", "nfs"), ("/srv/hospital", "ext4")], None),
        ([("/srv/hospital", "ext4"), ("/srv/hospital", "9p")], "9p"),
    ],
)
def test_the_nearest_mount_says_what_a_path_lies_on(mounts, found, monkeypatch):
    partitions = [SimpleNamespace(mountpoint=point, fstype=kind) for point, kind in [*LOCAL, *mounts]]
    monkeypatch.setattr("psutil.disk_partitions", lambda all: partitions)
    assert network_file_system(Path("/srv/hospital/disk")) == found
    assert network_file_system(Path("/srv/hospital/disk/not/yet/there")) == found


def test_a_link_lies_where_it_points(tmp_path, monkeypatch):
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far")
    mount = SimpleNamespace(mountpoint=str((tmp_path / "far").resolve()), fstype="smb3")
    monkeypatch.setattr("psutil.disk_partitions", lambda all: [mount])
    assert network_file_system(tmp_path / "near" / "ledger.db") == "smb3"


def test_a_root_on_the_network_is_reported(monkeypatch):
    monkeypatch.setattr("psutil.disk_partitions", lambda all: [SimpleNamespace(mountpoint="/", fstype="nfs")])
    assert network_file_system(Path("/anywhere")) == "nfs"
