"""A steward's decision on a release: whether its records may be fetched.

A decision is on a whole bundle as it was made: no record is ever taken out of one, and a bundle that is made again is a
new event, which is paid for again. What a server sees of a decision depends on the records, and no epsilon covers it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cadp_fl.errors import InputError, ReviewError
from cadp_fl.json_text import parse_json
from cadp_fl.outputs import write_durably
from cadp_fl.release.bundle import open_bundle
from cadp_fl.release.manifest import Manifest, manifest_sha256

__all__ = ["Decision", "Review", "Staged"]

Decision = Literal["approved", "denied"]


@dataclass(frozen=True)
class Staged:
    """A release that was made.

    Attributes:
        manifest: what it is, how it was made, and what it claims.
        decision: of the steward; None while it waits.
        left: whether records of it were fetched.
    """

    manifest: Manifest
    decision: Decision | None
    left: bool = False


class Review:
    """The decisions on the releases in an outbox.

    Args:
        outbox: folder of a site's releases.
    """

    def __init__(self, outbox: Path) -> None:
        self._outbox = outbox

    def staged(self) -> list[Staged]:
        """Return every release that was made, by its event id.

        Raises:
            InputError: there is no outbox.
            ExchangeError: a bundle is damaged.
        """
        if not self._outbox.is_dir():
            raise InputError(f"A site's releases wait in a folder. Found none at '{self._outbox}'; check the path.")
        folders = sorted(path for path in self._outbox.iterdir() if (path / "manifest.json").is_file())
        manifests = [open_bundle(folder).manifest for folder in folders if not folder.name.startswith(".")]
        return [Staged(each, self.decision(each), self._left(each.event_id).exists()) for each in manifests]

    def one(self, event_id: str) -> Staged:
        """Return a release that was made.

        Raises:
            InputError: there is no outbox, or no such release.
            ExchangeError: a bundle is damaged.
        """
        named = {each.manifest.event_id: each for each in self.staged()}
        if event_id not in named:
            known = ", ".join(named) or "none"
            raise InputError(f"A review is of a release that was made: {known}. Found '{event_id}'.")
        return named[event_id]

    def note_fetched(self, event_id: str) -> None:
        """Note that records of a release leave, before the first does."""
        if not self._left(event_id).exists():
            write_durably(self._left(event_id), b"{}")

    def decide(self, event_id: str, decision: Decision) -> Manifest:
        """Write down a decision for good, after every shard was verified.

        Raises:
            InputError: there is no such release, or another decision was made on it.
            ExchangeError: the bundle is damaged.
        """
        staged = self.one(event_id)
        if decision == "denied" and staged.left:
            raise InputError(
                f"A release is denied before it leaves. Records of '{event_id}' were fetched already, and cannot be "
                "taken back."
            )
        if staged.decision not in (None, decision):
            raise InputError(
                f"A decision is final. '{event_id}' was {staged.decision}; let the server ask for a new release, which "
                "is paid for again."
            )
        for _ in open_bundle(self._outbox / event_id).parts():
            pass
        text = json.dumps({"decision": decision, "manifest_sha256": manifest_sha256(staged.manifest)})
        write_durably(self.path(event_id), text.encode())
        return staged.manifest

    def decision(self, manifest: Manifest) -> Decision | None:
        """Return the decision on a release; one on another bundle of its name is none."""
        try:
            stored = parse_json(self.path(manifest.event_id).read_text(encoding="utf-8"))
            decision, sha256 = stored["decision"], stored["manifest_sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return decision if sha256 == manifest_sha256(manifest) and decision in ("approved", "denied") else None

    def check(self, manifest: Manifest) -> None:
        """Check that a release may be fetched.

        Raises:
            ReviewError: the steward denied it, or has not decided yet.
        """
        decision = self.decision(manifest)
        if decision != "approved":
            raise ReviewError(
                f"Records leave when the steward has approved their release. '{manifest.event_id}' "
                f"{'was denied' if decision == 'denied' else 'waits'}; ask the site's steward."
            )

    def _left(self, event_id: str) -> Path:
        return self._outbox / f"{event_id}.fetched.json"

    def path(self, event_id: str) -> Path:
        """Return where the steward's decision about a release is kept."""
        return self._outbox / f"{event_id}.review.json"
