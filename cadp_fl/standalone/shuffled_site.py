"""A shuffled release asked of a whole site: guesses by a place of its order, and laws of its messages and units."""

import math
from collections.abc import Iterator

import numpy as np

from cadp_fl.evaluation.laws import Law
from cadp_fl.evaluation.shuffled import SHUFFLED_CLASSES, UNITS, Guesses, Messages, guesses_by_a_place, worst_pair
from cadp_fl.evaluation.shuffled_laws import laws_of_messages, laws_of_numbered, numbered
from cadp_fl.privacy.mechanisms import PrivUnitMechanism
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.standalone.asked import SHAPE, Asked, labelled_records

__all__ = ["guesses_at_a_site", "laws_at_a_site"]

_ALIKE = 2048
"""Units whose messages' sides and labels are counted."""

_MARGIN = 0.1
"""Beyond a half-space's edge: what is released in steps of 1/16 is rounded by less, so that the rate is as if it were
not."""

_NUMBERED_RELEASES = 4
_WHITE, _GREY, _BLACK = 255, 128, 0


def guesses_at_a_site(asked: Asked, mechanism: PrivUnitMechanism, releases: int, noise: NoiseSource) -> Guesses:
    """Return guesses by one place of the releases of two sites, which differ in one unit.

    Args:
        asked: who asks them.
        mechanism: of the releases.
        releases: that are guessed.
        noise: of the coins.
    """
    pair = worst_pair(UNITS, math.prod(SHAPE))
    levels = [np.choose(each.signs + 1, (_BLACK, _GREY, _WHITE)).astype(np.uint8) for each in pair]
    sites = [
        asked.site(name, labelled_records(each.reshape(-1, *SHAPE), crowd.labels, SHUFFLED_CLASSES))
        for name, each, crowd in zip(("left", "right"), levels, pair, strict=True)
    ]

    def release(is_right: np.ndarray, _: NoiseSource) -> Messages | None:
        released = (asked.release(sites[int(right)], mechanism) for right in is_right)
        return Messages.together(Messages.of(each, 1, UNITS) for each in released)

    return guesses_by_a_place(mechanism, release, pair, releases, noise)


def laws_at_a_site(asked: Asked, mechanism: PrivUnitMechanism) -> Iterator[Law]:
    """Yield the laws of a site's messages, of units that are all alike, and of its units and order."""
    for label, level in enumerate((_BLACK, _WHITE)):
        images = np.full((_ALIKE, *SHAPE), level, dtype=np.uint8)
        labels = np.full(_ALIKE, label, dtype=np.int64)
        released = asked.release(
            asked.site(f"alike-{label}", labelled_records(images, labels, SHUFFLED_CLASSES)), mechanism
        )
        along = released.noised.sum(axis=1) / math.sqrt(released.noised.shape[1]) * (1 if level else -1)
        cut = mechanism.threshold + _MARGIN
        yield from laws_of_messages(mechanism, label, along, cut, released.labels)
    numbers = np.arange(UNITS)
    site = asked.site("numbered", labelled_records(asked.zeros("numbered", UNITS), numbers, UNITS))
    numbering = numbered(mechanism, UNITS, 1)
    releases = [asked.release(site, numbering) for _ in range(_NUMBERED_RELEASES)]
    for law in laws_of_numbered(releases, UNITS, 1):
        if law.name not in ("noise of a unit", "blanks"):  # a unit that is as good as zero still has a direction
            yield law
