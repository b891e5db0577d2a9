"""What breaks federations in practice, looked at in one folder: a site's, its node's part, or a coordinator's."""

import os
import pwd
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cadp_fl.deployment.coordinator import CoordinatorFolder
from cadp_fl.doctor.coordinator import COORDINATOR_CHECKS, Coordinator
from cadp_fl.doctor.finding import Check, Finding, examine
from cadp_fl.doctor.node import NODE_CHECKS, Node
from cadp_fl.doctor.round import ROUND_CHECKS
from cadp_fl.doctor.site import SITE_CHECKS, Site
from cadp_fl.errors import InputError
from cadp_fl.site.folder import NodeFolder, SiteFolder

__all__ = ["Diagnosis", "diagnose"]


@dataclass(frozen=True)
class Diagnosis:
    """What was found in a folder.

    Attributes:
        side: whose folder it is.
        findings: in order.
    """

    side: Literal["site", "node", "coordinator"]
    findings: Sequence[Finding]

    @property
    def is_faulty(self) -> bool:
        """Whether anything does not work, or is not safe."""
        return any(finding.state == "fault" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        findings = [{"check": each.name, **{key: vars(each)[key] for key in _FIELDS}} for each in self.findings]
        return {"side": self.side, "faulty": self.is_faulty, "findings": findings}


_FIELDS = ("state", "found", "fix")


def diagnose(path: Path, *, dummy_round: bool = False, debug: bool = False) -> Diagnosis:
    """Look at a folder. Nothing is changed, and nothing is spent.

    Args:
        dummy_round: at a coordinator, also ask every connected site what it is, by a run of Flower's.
        debug: lets through what nobody foresaw.

    Raises:
        InputError: it is nobody's folder, or another user's.
    """
    path = path.absolute()
    side, checks, subject = _who(path)
    if dummy_round:
        if side != "coordinator":
            raise InputError(f"A round is asked for by a coordinator. '{path}' is a site's; leave --round out.")
        checks = (*checks, *ROUND_CHECKS)
    return Diagnosis(side, examine(checks, subject, debug=debug))


def _who(path: Path) -> tuple[Literal["site", "node", "coordinator"], Sequence[Check], Coordinator | Node]:
    """Return whose folder is at a path, what to look at, and the folder."""
    site, node = SiteFolder(path), NodeFolder(path)
    if os.path.isfile(path / "coordinator.yaml"):  # which says no where this user may not enter
        _check_user(path)
        return "coordinator", COORDINATOR_CHECKS, Coordinator(CoordinatorFolder.at(path))
    if os.access(site.config, os.R_OK):
        _check_user(path)
        return "site", SITE_CHECKS, Site(site)
    for part in (node, site.node):
        if os.path.isfile(part.config):
            return "node", NODE_CHECKS, Node(part)
    raise InputError(
        f"A doctor looks at a coordinator's folder, a site's, or the node/ in it. '{path}' is none of them, or closed "
        "to this user; check the path, and look as the folder's user."
    )


def _check_user(path: Path) -> None:
    """Check that what is opened here stays its owner's.

    Raises:
        InputError: it would become root's.
    """
    owner = path.stat().st_uid
    if os.geteuid() == 0 and owner != 0:
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = f"#{owner}"
        raise InputError(
            f"A folder is looked at by its user, since a database that root opens may become root's. Found root; run "
            f"sudo -u {name} cadp-fl doctor."
        )
