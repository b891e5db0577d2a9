"""Fetching releases from sites: a shard a message, each verified before it is written down, in flat memory.

Where a site's policy asks for review, its release can be fetched once its steward has approved it. Whether a steward
has not decided yet or has denied it looks the same, so that a run over real sites asks again for some time.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from cadp_fl.errors import CadpError, ExchangeError, ReviewError
from cadp_fl.federated.federation import Federation
from cadp_fl.release.bundle import BundleWriter, check_labels, parse_shard
from cadp_fl.release.manifest import Manifest
from cadp_fl.site.protocol import Reply, Request
from cadp_fl.site.requests import FetchRequest

__all__ = ["IncomingRelease", "fetch_releases"]

FETCH_TRIES = 2
REVIEW_PAUSE_SECONDS = 10.0


def fetch_releases(
    federation: Federation, manifests: Mapping[str, Manifest], folder: Path, *, phase: str, review_seconds: float = 0.0
) -> None:
    """Fetch every site's shards in turn, and write each to `folder/<site>` when it is verified.

    A release of which a shard does not come, or is not what its manifest says, is left out as a whole.

    Args:
        manifests: of every release, by site.
        phase: the phase of the run, for progress and for naming who is missing.
        review_seconds: how long to wait for stewards to approve the releases.

    Raises:
        FederationError: fewer releases came whole than sites are needed.
    """
    rounds = max(len(manifest.shards) for manifest in manifests.values())
    with ExitStack() as stack:
        incoming = {
            site: IncomingRelease(manifest, stack.enter_context(BundleWriter(folder / site)))
            for site, manifest in manifests.items()
        }
        reviews = _Reviews(federation, phase, rounds, review_seconds)
        for number in range(rounds):
            tries = FETCH_TRIES  # a shard costs nothing, however often it is fetched
            while tries and (
                wanted := {site: each.request() for site, each in incoming.items() if each.waits_for(number)}
            ):
                federation.ask(
                    reviews.due(wanted),
                    phase=phase,
                    round=number + 1,
                    of=rounds,
                    check=lambda site, reply: incoming[site].add(reply),
                    waits=reviews.wait,
                )
                tries -= not reviews.pause()
            federation.recorder.round(phase, number + 1, rounds)
        whole = [each for each in incoming.values() if each.is_whole]
        federation.require(phase, len(whole))
        for each in whole:
            each.writer.finish(each.manifest)


class _Reviews:
    """The stewards' approvals that a fetch waits for.

    Args:
        federation: hears of every site that waits.
        phase: of the run.
        rounds: of the phase.
        seconds: how long to wait for all of them.
    """

    def __init__(self, federation: Federation, phase: str, rounds: int, seconds: float) -> None:
        self._federation, self._phase, self._rounds = federation, phase, rounds
        self._deadline = time.monotonic() + seconds
        self._waiting: set[str] = set()
        self._known: set[str] = set()

    def due(self, wanted: Mapping[str, Request]) -> dict[str, Request]:
        """Return what to ask now: of those alone that wait, if any do."""
        waiting, self._waiting = self._waiting, set()
        return {site: each for site, each in wanted.items() if not waiting or site in waiting}

    def wait(self, site: str, error: CadpError) -> bool:
        """Return whether a site is asked again: its steward has not approved the release, and there is time."""
        if not isinstance(error, ReviewError) or time.monotonic() >= self._deadline:
            return False
        self._waiting.add(site)
        if site not in self._known:
            self._known.add(site)
            self._federation.recorder.waits(self._phase, 1, self._rounds, site, "waits for its steward's approval")
        return True

    def pause(self) -> bool:
        """Wait a little if any site waits, and return whether one does."""
        if self._waiting:
            time.sleep(min(REVIEW_PAUSE_SECONDS, max(0.0, self._deadline - time.monotonic())))
        return bool(self._waiting)


class IncomingRelease:
    """A release that is being fetched: each shard is verified, then written down."""

    def __init__(self, manifest: Manifest, writer: BundleWriter) -> None:
        self.manifest, self.writer = manifest, writer
        self._counts = np.zeros(len(manifest.dataset.classes), dtype=np.int64)

    @property
    def is_whole(self) -> bool:
        """Whether every shard is there."""
        return len(self.writer) == len(self.manifest.shards)

    def waits_for(self, number: int) -> bool:
        """Return whether the shard of a number is the next one."""
        return len(self.writer) == number < len(self.manifest.shards)

    def request(self) -> Request:
        """Return the request for the next shard."""
        shard = self.manifest.shards[len(self.writer)]
        settings = FetchRequest(event_id=self.manifest.event_id, shard=shard.name)
        return Request("fetch", settings.model_dump(mode="json"))

    def add(self, reply: Reply) -> None:
        """Write the next shard down.

        Raises:
            ExchangeError: it is not what the manifest says, or the labels of all shards are not.
        """
        shard, array = self.manifest.shards[len(self.writer)], reply.arrays.get("shard")
        if array is None or array.nbytes != shard.bytes:
            raise ExchangeError(f"A shard has the {shard.bytes} bytes that its manifest says. Found something else.")
        data = array.tobytes()
        self._counts += parse_shard(self.manifest, shard, data).class_counts()
        if len(self.writer) + 1 == len(self.manifest.shards):
            check_labels(self.manifest, self._counts)
        self.writer.add(shard.name, data)
