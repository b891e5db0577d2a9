"""Plugins: Python modules that a study's author names, each of which adds names to our registries when it is imported.

    SOURCES["scans"] = Reader(read_scans)        # in cadp_fl.data.sources; also PARTITIONS, CLASSIFIERS, MECHANISMS
                                                 # and METHODS

A plugin is code and runs as such, so only what reads a study's own config imports it: the command, and the server app
and the sites of a simulation. What a server asks of a site names a classifier or a mechanism, and never a plugin.
"""

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cadp_fl.classifier.models import CLASSIFIERS
from cadp_fl.config.names import NAME
from cadp_fl.data.partition import PARTITIONS
from cadp_fl.data.sources import SOURCES
from cadp_fl.errors import ConfigError
from cadp_fl.federated.methods import METHODS
from cadp_fl.privacy.mechanisms import MECHANISMS

__all__ = ["REGISTRIES", "load_plugins"]

REGISTRIES: dict[str, dict[str, Any]] = {
    "SOURCES": SOURCES,
    "PARTITIONS": PARTITIONS,
    "CLASSIFIERS": CLASSIFIERS,
    "MECHANISMS": MECHANISMS,
    "METHODS": METHODS,
}
"""What a plugin may add to."""


def load_plugins(plugins: Iterable[str]) -> None:
    """Import plugins, each once in a process. One that cannot be taken leaves the registries as they were.

    Args:
        plugins: dotted names of modules, or absolute paths of Python files.

    Raises:
        ConfigError: a plugin is not found, raises an error, or changes a name that is taken.
    """
    for plugin in plugins:
        _load(plugin)


def _load(plugin: str) -> None:
    module = _module_of(plugin)
    if module in sys.modules:
        return
    before = {registry: dict(entries) for registry, entries in REGISTRIES.items()}
    try:
        _import(plugin, module)
        _check_added(plugin, before)
    except BaseException:
        for registry, entries in REGISTRIES.items():
            entries.clear()
            entries.update(before[registry])
        sys.modules.pop(module, None)
        raise


def _is_file(plugin: str) -> bool:
    return plugin.endswith(".py")


def _module_of(plugin: str) -> str:
    """Return the name that a plugin has as a module; that of a file depends on its path."""
    if not _is_file(plugin):
        return plugin
    digest = hashlib.blake2b(plugin.encode(), digest_size=4).hexdigest()
    return f"cadp_fl_plugin_{digest}_{re.sub('[^A-Za-z0-9]', '_', Path(plugin).stem)}"


def _import(plugin: str, module: str) -> None:
    if _is_file(plugin) and not Path(plugin).is_file():
        raise ConfigError(f"A plugin is a file or a module that is installed. There is no file '{plugin}'; check it.")
    try:
        if _is_file(plugin):
            _run_file(plugin, module)
        else:
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise _failed(plugin, error) from error
        raise ConfigError(
            f"A plugin is a file or a module that is installed. No module '{plugin}' is found; install it, or name its "
            "file with a path that ends in .py."
        ) from error
    except (Exception, SystemExit) as error:  # it is someone else's code
        raise _failed(plugin, error) from error


def _run_file(plugin: str, module: str) -> None:
    spec = importlib.util.spec_from_file_location(module, plugin)
    assert spec is not None, "its name ends in .py"
    assert spec.loader is not None, "its name ends in .py"
    sys.modules[module] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[module])


def _failed(plugin: str, error: BaseException) -> ConfigError:
    said = " ".join(str(error).split())[:300]
    return ConfigError(
        f"A plugin is imported without an error. '{plugin}' raised {type(error).__name__}: {said.rstrip('.')}; fix it."
    )


def _check_added(plugin: str, before: dict[str, dict[str, Any]]) -> None:
    """Check that a plugin added names of the right form, and left all others as they were.

    Raises:
        ConfigError: it did not.
    """
    for registry, entries in REGISTRIES.items():
        if changed := [name for name, entry in before[registry].items() if entries.get(name) is not entry]:
            raise ConfigError(
                f"A plugin adds names and changes none. '{plugin}' changed '{changed[0]}' of {registry}; give its own "
                "another name."
            )
        for name in entries.keys() - before[registry].keys():
            if not re.fullmatch(NAME, name):
                raise ConfigError(
                    f"A name in {registry} is up to 40 of a-z, 0-9 and -. '{plugin}' adds '{name}'; rename it."
                )
            if registry in ("MECHANISMS", "METHODS") and getattr(entries[name], "name", None) != name:
                raise ConfigError(
                    f"A class stands in {registry} below its own name. '{plugin}' puts one below '{name}' whose name "
                    "is another; make them one."
                )
