"""What a run rests on beside its sites' records: its study, plugins, pretrained flow and software.

Figures of one run stand in one table, so they have one basis: a run whose basis changed is not resumed.
"""

import hashlib
import importlib.util
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

import cadp_fl
from cadp_fl.config import StudyConfig
from cadp_fl.data.fingerprint import Fingerprint
from cadp_fl.errors import InputError
from cadp_fl.flow.storage import flow_sha256, load_flow

__all__ = ["MOST_NAMED", "Basis", "check_same_records", "differences", "installed_versions"]

LIBRARIES = ("flwr", "torch", "FrEIA", "opacus", "dp-accounting", "numpy")
MOST_NAMED = 6
"""Differences that a message lists."""

_WAY_OUT = "or start a new run in another --output"


class Basis(BaseModel):
    """What the figures of a run depend on beside the records."""

    model_config = ConfigDict(extra="forbid")
    study: dict[str, Any] = Field(description="the resolved config, but for the device")
    plugins: dict[str, str] = Field({}, description="SHA-256 of each plugin's code, by its name")
    flow: str = Field("", description="SHA-256 of the pretrained flow; empty without one")
    software: dict[str, tuple[str, ...]] = Field(
        description="versions by name, in the order in which the run was resumed with them"
    )

    @classmethod
    def of(cls, study: StudyConfig) -> "Basis":
        """Return the basis of a study that is run now; its plugins have been imported.

        Raises:
            InputError: a file that the study names cannot be read.
        """
        start = study.flow.pretrained
        return cls(
            # In a simulation the device may be another name of the same GPU; see cadp_fl.study.simulated_sites.
            study=study.model_dump(mode="json", exclude={"device"}),
            plugins={plugin: _sha256(*_code_of(plugin)) for plugin in study.plugins},
            flow=flow_sha256(load_flow(start.path)[0]) if start is not None else "",
            software={name: (now,) for name, now in installed_versions().items()},
        )

    @property
    def versions(self) -> dict[str, str]:
        """The versions by name; all of them where a run was resumed with a later patch."""
        return {name: ", then ".join(each) for name, each in self.software.items()}

    def continued(self, then: "Basis") -> "Basis":
        """Return the basis of a run that began with another one, and goes on with this.

        Raises:
            InputError: the two differ in what figures depend on; the message says what it was and is.
        """
        for key, now, before in differences(self.study, then.study):
            raise InputError(
                f"A run is resumed with the study that it began with. '{key}' is {now!s:.200} now and was "
                f"{before!s:.200}; give the same config and every --set again, {_WAY_OUT}."
            )
        if changed := [name for name in then.plugins if self.plugins[name] != then.plugins[name]]:
            raise InputError(
                f"A run is resumed with the plugins that it began with. The code of '{changed[0]}' is another one now "
                f"(SHA-256 {self.plugins[changed[0]][:12]}, and was {then.plugins[changed[0]][:12]}); bring the "
                f"earlier code back, {_WAY_OUT}."
            )
        if self.flow != then.flow:
            raise InputError(
                "A run is resumed with the flow that it began with. The file of flow.pretrained is another one now "
                f"(SHA-256 {self.flow[:12]}, and was {then.flow[:12]}); bring the earlier one back, {_WAY_OUT}."
            )
        self._check_software(then)
        software = {
            name: then.software[name] if then.software[name][-1] == now else (*then.software[name], now)
            for name, (*_, now) in self.software.items()
        }
        return self.model_copy(update={"software": software})

    def _check_software(self, then: "Basis") -> None:
        """Check that versions are those of then; cadp-fl and Python may have become a later patch.

        Raises:
            InputError: they are not.
        """
        changed = []
        for name in {**then.software, **self.software}:
            now, before = (each.software.get(name, ("missing",))[-1] for each in (self, then))
            lines = [_line(text) if name in ("cadp-fl", "python") else [text] for text in (now, before)]
            if lines[0] != lines[1]:
                changed.append((name, now, before))
        if changed:
            changes = ", ".join(f"{name} is {now} now and was {before}" for name, now, before in changed)
            pins = " ".join(f'"{name}=={before}"' for name, _, before in changed if name != "python")
            install = f"install the earlier {'ones' if len(changed) > 1 else 'one'} again"
            raise InputError(
                "A run is resumed with the software that it began with, since its figures stand in one table. "
                f"{changes}; {install}{f' (pip install {pins})' if pins else ''}, {_WAY_OUT}."
            )


def check_same_records(now: Mapping[str, Fingerprint], then: Mapping[str, Fingerprint], *, source: str) -> None:
    """Check that the sites of a simulation have the records that a run began with; one that says nothing may be away.

    Args:
        source: the file, the folder or the name that the records are read from.

    Raises:
        InputError: a site has others; the message says which part of them differs.
    """
    changed = {site: now[site].differences(then[site]) for site in then if site in now}
    differing = [f"of '{site}' {', '.join(parts)}" for site, parts in changed.items() if parts]
    if differing:
        more = f"; and of {len(differing) - MOST_NAMED} more sites" if len(differing) > MOST_NAMED else ""
        raise InputError(
            f"A run is resumed with the records that it began with. '{source}' holds others now. They differ in: "
            f"{'; '.join(differing[:MOST_NAMED])}{more}. Bring the earlier records back, {_WAY_OUT}."
        )


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted key of every value that differs, with both values."""
    for key in {**ours, **theirs}:
        now, then = ours.get(key), theirs.get(key)
        if isinstance(now, Mapping) and isinstance(then, Mapping):
            yield from differences(now, then, f"{above}{key}.")
        elif now != then:
            yield f"{above}{key}", now, then


def _line(version: str) -> list[str]:
    return version.split(".")[:2]


def installed_versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    own = {"cadp-fl": cadp_fl.__version__, "python": platform.python_version()}
    return own | {name: version(name) for name in LIBRARIES}


def _code_of(plugin: str) -> list[Path]:
    """Return the files of a plugin: itself, or all of the package that it is."""
    if plugin.endswith(".py"):
        return [Path(plugin)]
    spec = importlib.util.find_spec(plugin)
    if spec is None:
        return []
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    return files or ([Path(spec.origin)] if spec.origin is not None else [])


def _sha256(*files: Path) -> str:
    """Return the hash of files, one after the other, each by its name and its own hash."""
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        except OSError as error:
            raise InputError(f"A run reads '{path}', which its study names. It cannot: {error.strerror}.") from error
    return digest.hexdigest()
