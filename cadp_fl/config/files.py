"""Configs in files: YAML in, typed models out, with overrides and variables of the environment."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from cadp_fl.config.deployment import CoordinatorConfig, Invitation, NodeConfig, SiteConfig
from cadp_fl.config.policy import PolicyConfig
from cadp_fl.config.settings import Settings, parse
from cadp_fl.config.study import StudyConfig
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

MAX_CONFIG_BYTES = 1 << 20


def load_study(path: Path, overrides: Iterable[str] = ()) -> StudyConfig:
    """Read a study from YAML, apply `dotted.key=value` overrides and resolve relative paths.

    `${NAME}` and `${NAME:-default}` expand from the environment, after the overrides. A relative path is relative to
    the config file.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, or a value is out of range.
    """
    tree = _read(path, "study config")
    for override in overrides:
        _override(tree, override)
    study = parse(StudyConfig, _expand(tree))
    folder = path.resolve().parent
    if study.data.path is not None:
        absolute = _absolute(study.data.path, folder, "data.path")
        study = study.model_copy(update={"data": study.data.model_copy(update={"path": absolute})})
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
        ConfigError: the file is missing or not YAML, a key is unknown, or a value is out of range.
    """
    return parse(PolicyConfig, _read(path, "policy"), where="policy")


def load_site(path: Path) -> SiteConfig:
    """Read what a site's agent knows, site.yaml; a relative path in it is relative to the file.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, or a value is out of range.
    """
    site, folder = parse(SiteConfig, _read(path, "site config")), path.resolve().parent
    data = site.data
    if data is not None and data.path is not None:
        data = data.model_copy(update={"path": _absolute(data.path, folder, "data.path")})
    paths = {
        key: _absolute(value, folder, key)
        for key, value in (("rehearsal", site.rehearsal), ("mark", site.mark))
        if value is not None
    }
    return site.model_copy(update={"data": data, **paths})


def load_node(path: Path) -> NodeConfig:
    """Read what a site's SuperNode knows, node.yaml.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, or a value is out of range.
    """
    return parse(NodeConfig, _read(path, "node config"))


def load_coordinator(path: Path) -> CoordinatorConfig:
    """Read the coordinator's side of a federation, coordinator.yaml.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, or a value is out of range.
    """
    return parse(CoordinatorConfig, _read(path, "coordinator config"))


def load_invitation(path: Path) -> Invitation:
    """Read a coordinator's invitation.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, or a value is out of range.
    """
    return parse(Invitation, _read(path, "invitation"))


def dump(settings: Settings) -> str:
    """Return settings as YAML, without what is left at its default."""
    tree = settings.model_dump(mode="json", exclude_defaults=True)
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as these lines."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def _read(path: Path, what: str) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        ConfigError: there is none.
    """
    if not path.is_file():
        raise ConfigError(f"A {what} is a file. Found none at '{path}'; check the path.")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ConfigError(f"A {what} is at most {MAX_CONFIG_BYTES} bytes. '{path}' has {path.stat().st_size}.")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 1})" if where is not None else ""
        raise ConfigError(f"A {what} is YAML in UTF-8. '{path}' is not{line}; mend it there.") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"A {what} is a mapping of keys to values. '{path}' holds a {type(tree).__name__}.")
    return tree


def dump_study(study: StudyConfig) -> str:
    """Return a study as YAML that `load_study` reads back to an equal one."""
    return yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _override(tree: dict[str, Any], override: str) -> None:
    """Set one `dotted.key=value` in a tree; the value is read as YAML."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"An override is 'dotted.key=value'. Found '{override}'.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The value of an override is YAML. Found '{text}' for '{key}'; quote it.") from error
    node: Any = tree
    for part in parts[:-1]:
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict):
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        else:
            raise ConfigError(f"'{key}' cannot be set: '{part}' is not below a mapping. Check the key.")
    if isinstance(node, list) and parts[-1].isdigit() and int(parts[-1]) < len(node):
        node[int(parts[-1])] = value
    elif isinstance(node, dict):
        node[parts[-1]] = value
    else:
        raise ConfigError(f"'{key}' cannot be set: '{parts[-1]}' is not below a mapping. Check the key.")


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def _expand(node: Any, key: str = "") -> Any:
    """Expand `${NAME}` and `${NAME:-default}` in every string of a tree; `key` is the dotted key of the node."""
    if isinstance(node, dict):
        return {name: _expand(value, f"{key}.{name}" if key else str(name)) for name, value in node.items()}
    if isinstance(node, list):
        return [_expand(value, f"{key}.{index}") for index, value in enumerate(node)]
    if isinstance(node, str):
        return _VARIABLE.sub(lambda match: _value_of_variable(match, key), node)
    return node


def _value_of_variable(match: re.Match[str], key: str) -> str:
    name, default = match.group(1), match.group(2)
    value = os.environ.get(name, default)
    if value is None:
        raise ConfigError(
            f"A variable in a config is set in the environment. '{key}' reads {match.group()}, and {name} is not set; "
            f"run export {name}=..., or pass --set {key}=..."
        )
    return value


def _absolute(path: Path, folder: Path, key: str) -> Path:
    """Return a path with `~` expanded; a relative one starts at the folder."""
    try:
        return (folder / path.expanduser()).resolve()
    except (RuntimeError, OSError, ValueError) as error:
        raise ConfigError(f"{key} is a path of this machine. Found '{path}' ({error}); check it.") from error
