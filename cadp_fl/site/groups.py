"""The group of the SuperNode's user, by name or number."""

import grp

from cadp_fl.errors import InputError

__all__ = ["gid_of"]


def gid_of(group: str | None) -> int | None:
    """Return the number of a group; None if there is no group to speak of.

    Raises:
        InputError: this machine has no such group.
    """
    if group is None:
        return None
    try:
        return int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise InputError(
            f"The group that may reach the agent is one of this machine. Found no '{group}'; make it with groupadd."
        ) from error
