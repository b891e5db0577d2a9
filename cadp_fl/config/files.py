"""Configs in files: YAML in, typed models out, with overrides and variables of the environment."""

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cadp_fl.config.deployment import CoordinatorConfig, Invitation, NodeConfig, SiteConfig
from cadp_fl.config.policy import PolicyConfig
from cadp_fl.config.reader import read_file, read_value
from cadp_fl.config.scalars import check_printable, plain_value
from cadp_fl.config.settings import Settings, parse
from cadp_fl.config.study import DataConfig, StudyConfig
from cadp_fl.config.writer import dump_tree
from cadp_fl.config.written import WrittenList, WrittenMap
from cadp_fl.errors import ConfigError

__all__ = [
    "dump",
    "dump_study",
    "load_coordinator",
    "load_invitation",
    "load_node",
    "load_policy",
    "load_site",
    "load_study",
]


def load_study(path: Path, overrides: Iterable[str] = ()) -> StudyConfig:
    """Read a study from YAML, apply `dotted.key=value` overrides and resolve relative paths.

    `${NAME}` and `${NAME:-default}` expand from the environment, after the overrides. A relative path is relative to
    the config file.

    Raises:
        ConfigError: the file is missing or breaks a rule of YAML, a key is unknown, or a value is out of range.
    """
    tree = read_file(path, "study config")
    for override in overrides:
        _override(tree, override)
    _expand(tree)
    study = parse(StudyConfig, tree)
    folder = path.resolve().parent
    study = study.model_copy(update={"data": _absolute_data(study.data, folder)})
    if study.flow.pretrained is not None:
        absolute = _absolute(study.flow.pretrained.path, folder, "flow.pretrained.path")
        pretrained = study.flow.pretrained.model_copy(update={"path": absolute})
        study = study.model_copy(update={"flow": study.flow.model_copy(update={"pretrained": pretrained})})
    plugins = tuple(
        str(_absolute(Path(plugin), folder, "plugins")) if plugin.endswith(".py") else plugin
        for plugin in study.plugins
    )
    return study.model_copy(update={"plugins": plugins})


def load_policy(path: Path) -> PolicyConfig:
    """Read a site's policy from YAML. No override and no variable: what stands in the file is what holds.

    Raises:
        ConfigError: the file is missing or breaks a rule of YAML, a key is unknown, or a value is out of range.
    """
    return parse(PolicyConfig, read_file(path, "policy"), where="policy")


def load_site(path: Path) -> SiteConfig:
    """Read what a site's agent knows, site.yaml; a relative path in it is relative to the file.

    Raises:
        ConfigError: the file is missing or breaks a rule of YAML, a key is unknown, or a value is out of range.
    """
    site, folder = parse(SiteConfig, read_file(path, "site config")), path.resolve().parent
    data = None if site.data is None else _absolute_data(site.data, folder)
    paths = {
        key: _absolute(value, folder, key)
        for key, value in (("rehearsal", site.rehearsal), ("mark", site.mark))
        if value is not None
    }
    return site.model_copy(update={"data": data, **paths})


def load_node(path: Path) -> NodeConfig:
    """Read what a site's SuperNode knows, node.yaml.

    Raises:
        ConfigError: the file is missing or breaks a rule of YAML, a key is unknown, or a value is out of range.
    """
    return parse(NodeConfig, read_file(path, "node config"))


def load_coordinator(path: Path) -> CoordinatorConfig:
    """Read the coordinator's side of a federation, coordinator.yaml.

    Raises:
        ConfigError: the file is missing or breaks a rule of YAML, a key is unknown, or a value is out of range.
    """
    return parse(CoordinatorConfig, read_file(path, "coordinator config"))


def load_invitation(path: Path) -> Invitation:
    """Read a coordinator's invitation.

    Raises:
        ConfigError: the file is missing or breaks a rule of YAML, a key is unknown, or a value is out of range.
    """
    return parse(Invitation, read_file(path, "invitation"))


def dump(settings: Settings) -> str:
    """Return settings as YAML, without what is left at its default."""
    return dump_tree(settings.model_dump(mode="json", exclude_defaults=True))


def dump_study(study: StudyConfig) -> str:
    """Return a study as YAML that `load_study` reads back to an equal one."""
    return dump_tree(study.model_dump(mode="json"))


def _override(tree: WrittenMap, override: str) -> None:
    """Set one `dotted.key=value` in a tree; the value is read as YAML."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"An override is 'dotted.key=value'. Found '{override}'.")
    value, place = read_value(text, f"--set {override}")
    node: Any = tree
    for part in parts[:-1]:
        if (index := _index(node, part)) is not None:
            node = node[index]
        elif isinstance(node, WrittenMap):
            if node.get(part) is None:
                node.put(part, WrittenMap(place), place, place)
            node = node[part]
        else:
            raise ConfigError(f"'{key}' cannot be set: '{part}' is not below a mapping. Check the key.")
    if (index := _index(node, parts[-1])) is not None:
        node[index], node.of_values[index] = value, place
    elif isinstance(node, WrittenMap):
        node.put(parts[-1], value, place, place)
    else:
        raise ConfigError(f"'{key}' cannot be set: '{parts[-1]}' is not below a mapping. Check the key.")


def _index(node: Any, part: str) -> int | None:
    """Return the index that a part of a key is, in a list that has one there."""
    known = isinstance(node, WrittenList) and re.fullmatch("[0-9]{1,6}", part) and int(part) < len(node)
    return int(part) if known else None


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def _expand(node: Any, key: str = "") -> None:
    """Expand `${NAME}` and `${NAME:-default}` in every text of a tree; `key` is the dotted key of the node."""
    below = node.items() if isinstance(node, WrittenMap) else enumerate(node) if isinstance(node, WrittenList) else ()
    for part, value in list(below):
        dotted = f"{key}.{part}" if key else str(part)
        if isinstance(value, str) and _VARIABLE.search(value):
            text, place = _VARIABLE.sub(partial(_value_of_variable, key=dotted), value), node.of_values[part]
            if place.written is not None:  # as if it stood there
                node[part], node.of_values[part] = plain_value(text), replace(place, written=text)
            else:
                node[part] = text
        else:
            _expand(value, dotted)


def _value_of_variable(match: re.Match[str], key: str) -> str:
    name, default = match.group(1), match.group(2)
    value = os.environ.get(name, default)
    if value is None:
        raise ConfigError(
            f"A variable in a config is set in the environment. '{key}' reads {match.group()}, and {name} is not set; "
            f"run export {name}=..., or pass --set {key}=..."
        )
    check_printable(value, f"variable {name} of the environment")
    return value


def _absolute_data(data: DataConfig, folder: Path) -> DataConfig:
    """Return where records are, with relative paths resolved."""
    paths = {key: getattr(data, key) for key in ("path", "metadata", "columns", "cache")}
    given = {key: _absolute(path, folder, f"data.{key}") for key, path in paths.items() if isinstance(path, Path)}
    return data.model_copy(update=given)


def _absolute(path: Path, folder: Path, key: str) -> Path:
    """Return a path with `~` expanded; a relative one starts at the folder."""
    try:
        absolute = (folder / path.expanduser()).resolve()
    except (RuntimeError, OSError, ValueError) as error:
        raise ConfigError(f"{key} is a path of this machine. Found '{path}' ({error}); check it.") from error
    check_printable(str(absolute), f"path ({key})")
    return absolute
