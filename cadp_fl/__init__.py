"""Federated learning on privatized records: content-aware differential privacy on Flower."""

from importlib import import_module

from cadp_fl.moved import install

TYPE_CHECKING = False  # that of typing, which takes longer to load than Ctrl-C may find nobody to answer it
if TYPE_CHECKING:
    from cadp_fl.release.dataset import load_release

    __version__: str

__all__ = ["__version__", "load_release"]

install()

_HOMES = {"load_release": "cadp_fl.release.dataset"}
"""Where a name lives. It is imported when it is asked for: `import cadp_fl` brings neither torch nor data code."""


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module("importlib.metadata").version("cadp-fl")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'cadp_fl' has no attribute '{name}'")
