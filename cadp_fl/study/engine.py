"""What Flower's simulation engine needs of this machine. It ends without a reason, or hangs, where something lacks."""

import contextlib
import os
import re
import resource
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from cadp_fl.config import SitesConfig, StudyConfig
from cadp_fl.errors import CadpError, ConfigError
from cadp_fl.outputs import check_unicode

__all__ = [
    "PREFIX",
    "cause_in",
    "check_engine",
    "cpus",
    "short_place",
    "sites_at_once",
    "temporary_place",
    "with_cause",
]

SOCKET_BYTES = 107 if sys.platform == "linux" else 103
"""Of the longest path that a socket may have."""

RAY_BYTES = len("/ray/session_2026-11-30_18-07-04_123456_1234567/sockets/plasma_store")
"""Of Ray's longest socket path, below the folder that it is given."""

PREFIX, RANDOM_BYTES = "cadp-fl-", 8
"""Of a temporary folder's name."""

SHORT_PLACES = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - a folder of our own is made there
DISK_BYTES = 64 << 20
ADDRESS_BYTES = 16 << 30
"""Of address space that every process of the engine may have. They reserve far more than they use."""

FILES = 256
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_ERROR = re.compile(r"^(?:\([^)]*\) )?((?:[A-Za-z_]\w*\.)*(?:[A-Za-z_]\w*)?(?:Error|Exception)): (\S.*)$")
_LINK = "The above exception was the direct cause of the following exception"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
LOG_BYTES, CAUSE_CHARACTERS = 1 << 20, 300


def check_engine(study: StudyConfig) -> None:
    """Check what can be checked before the simulation engine starts.

    Raises:
        ConfigError: the study asks for more than this machine has.
        CadpError: this machine lacks something.
    """
    sites, has = study.sites, cpus()
    if sites.cpus_per_client > has:
        raise ConfigError(
            f"A site computes on CPUs that this machine lets us use: {has}. Found sites.cpus_per_client "
            f"{sites.cpus_per_client}; lower it."
        )
    gpus = min(torch.cuda.device_count(), 1 if study.device.startswith("cuda:") else sys.maxsize)
    if (sites.gpus_per_client or 0) > gpus:
        raise ConfigError(
            f"A site computes on GPUs that torch sees here: {gpus}. Found sites.gpus_per_client "
            f"{sites.gpus_per_client}; lower it, or leave it out."
        )
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < ADDRESS_BYTES:
        raise CadpError(
            f"Flower's simulation engine reserves much address space: {ADDRESS_BYTES >> 30} GiB a process. The limit "
            f"is {limit / (1 << 30):.1f} GiB here; lift it with ulimit -v unlimited, and limit memory by a cgroup."
        )
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < FILES:
        raise CadpError(
            f"Flower's simulation engine opens some {FILES} files and sockets a process. The limit is {files} here; "
            "raise it (ulimit -n)."
        )
    for folder in {temporary_place(), short_place()}:
        check_unicode(folder, "A folder of temporary files (TMPDIR)")
        if (free := shutil.disk_usage(folder).free) < DISK_BYTES:
            raise CadpError(
                f"Flower's simulation engine writes temporary files: {DISK_BYTES >> 20} MiB at least. '{folder}' has "
                f"{free >> 20} MiB free on its disk; make room, or set TMPDIR to another folder."
            )


def temporary_place() -> Path:
    """Return where temporary folders are made.

    Raises:
        CadpError: nowhere can they be.
    """
    try:
        return Path(tempfile.gettempdir())
    except OSError as error:
        raise CadpError(
            "Flower's simulation engine writes temporary files. This user cannot, in TMPDIR, /tmp or here, or their "
            "disk is full; set TMPDIR to a folder in which it can."
        ) from error


def short_place() -> Path:
    """Return where a temporary folder can be made that is short enough for the engine's sockets.

    Raises:
        CadpError: nowhere can it be.
    """
    longest = SOCKET_BYTES - RAY_BYTES - len(f"/{PREFIX}") - RANDOM_BYTES
    places = [temporary_place(), *map(Path, SHORT_PLACES)]
    for place in places:
        if len(os.fsencode(place)) <= longest and place.is_dir() and os.access(place, os.W_OK | os.X_OK):
            return place
    raise CadpError(
        f"The path of a socket has {SOCKET_BYTES} bytes at most, so that the path of TMPDIR has {longest}. "
        f"'{places[0]}' is longer, and this user cannot write to {' or '.join(SHORT_PLACES)}; set TMPDIR to a shorter "
        "path."
    )


def sites_at_once(sites: SitesConfig) -> int:
    """Return how many sites compute at the same time on this machine."""
    return min(sites.count, max(1, cpus() // sites.cpus_per_client))


def cpus() -> int:
    """Return how many CPUs this process may use: of the machine, of its affinity, and of its container's quota."""
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = CPU_MAX.read_text(encoding="ascii").split()  # "max", which is no number, where there is none
        usable = min(usable, int(quota) // int(period))
    return max(1, usable)


def cause_in(log: Path, since: int = 0) -> str:
    """Return the last error that a log names, in one line: the one that caused others, and nothing where none is.

    Args:
        log: of Flower.
        since: bytes of it that were there before.
    """
    with log.open("rb") as file:
        file.seek(max(since, log.stat().st_size - LOG_BYTES))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    cause, is_linked = "", False
    for line in lines:
        is_linked = is_linked or _LINK in line
        if found := _ERROR.match(_COLOUR.sub("", line)):
            if not is_linked:
                cause = f"{found.group(1).rpartition('.')[2]}: {found.group(2)}"
            is_linked = False
    return "".join(character if character.isprintable() else " " for character in cause)[:CAUSE_CHARACTERS]


def with_cause(said: str, log: Path, since: int = 0) -> str:
    """Return a sentence with the cause that a log names, if it does."""
    cause = cause_in(log, since) if log.exists() else ""
    return f"{said} It was '{cause.rstrip('.')}'." if cause else said
