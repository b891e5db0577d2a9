"""Federated learning on privatized records: content-aware differential privacy on Flower."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cadp_fl.release.dataset import load_release

__all__ = ["__version__", "load_release"]

__version__ = version("cadp-fl")

_HOMES = {"load_release": "cadp_fl.release.dataset"}
"""Where a name lives. It is imported when it is asked for: `import cadp_fl` brings neither torch nor data code."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'cadp_fl' has no attribute '{name}'")
