"""Who a record is of, which one it is, and where: names in a file become codes that stay what they are.

A code is a hash of the name, so that it is the same in every later export of the same hospital. Nothing in an error
names a patient.
"""

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from cadp_fl.errors import DataError

__all__ = ["code_of", "codes_of", "sites_of"]


def code_of(name: int | str | bytes) -> int:
    """Return 63 bits of the SHA-256 of a name."""
    written = name if isinstance(name, bytes) else str(name).encode()
    return int.from_bytes(hashlib.sha256(written).digest()[:8], "big") >> 1


def codes_of(names: Sequence[int | str | bytes] | np.ndarray, of: str) -> np.ndarray:
    """Return the code of every name, int64 (names,).

    Args:
        of: what has a name, in an error: a patient, or a record.

    Raises:
        DataError: two names have one code.
    """
    known, of_record = np.unique(np.asarray(names), return_inverse=True)
    codes = np.array([code_of(name) for name in known.tolist()], dtype=np.int64)
    if len(np.unique(codes)) < len(codes):
        raise DataError(f"Every {of} has a code of its own. Two have the same; rename one of them.")
    coded: np.ndarray = codes[of_record.reshape(-1)]
    return coded


def sites_of(names: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names of sites, as a study writes them, in order; and of which each record is, int64 (records,).

    A study writes 1 to 40 lower-case letters, digits and hyphens: `Cleveland Clinic` is `cleveland-clinic`.

    Raises:
        DataError: a name has no letter and no digit, or two become one.
    """
    found = sorted(set(names))
    written = [re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") for name in found]
    if not all(written) or len(set(written)) < len(written):
        raise DataError(
            f"Every site has a name of letters and digits of its own. Found {', '.join(repr(name) for name in found)}; "
            "rename them."
        )
    order = sorted(range(len(found)), key=lambda place: written[place])
    place_of = {found[old]: new for new, old in enumerate(order)}
    return tuple(written[old] for old in order), np.array([place_of[name] for name in names], dtype=np.int64)
