"""The releases that a user names by their folders."""

from collections.abc import Sequence
from pathlib import Path

from cadp_fl.errors import InputError
from cadp_fl.release.bundle import Bundle, open_bundle
from cadp_fl.release.dataset import shared_schema

__all__ = ["open_bundles"]


def open_bundles(folders: Sequence[Path]) -> list[Bundle]:
    """Return the bundles in some folders, which share one schema.

    Raises:
        InputError: there is no folder, one holds no manifest, one is named twice, or two schemas differ.
        ExchangeError: a manifest is damaged.
    """
    if not folders:
        raise InputError("Releases are read from folders. Found none; name one or more.")
    seen: set[Path] = set()
    for folder in folders:
        if not (folder / "manifest.json").exists():
            raise InputError(f"A release is a folder that holds a manifest.json. '{folder}' does not; check the path.")
        if folder.resolve() in seen:
            raise InputError(f"A release is read once. '{folder}' is named twice; leave one out.")
        seen.add(folder.resolve())
    bundles = [open_bundle(folder) for folder in folders]
    shared_schema([bundle.manifest for bundle in bundles])
    return bundles
