"""Flower's command line, for the SuperLink of a coordinator's folder."""

import os
from pathlib import Path

from cadp_fl.deployment.coordinator import CONNECTION, CoordinatorFolder
from cadp_fl.study.environment import flower_environment
from cadp_fl.study.flower import Flower

__all__ = ["superlink_of"]


def superlink_of(folder: Path) -> Flower:
    """Return the SuperLink of a coordinator's folder."""
    home = CoordinatorFolder(folder.resolve()).flower
    return Flower(home, CONNECTION, dict(os.environ) | flower_environment(home))
