"""Laws of a shuffled release: how messages are drawn, and that every unit is there once, in an order without meaning.

Units that are all alike send messages that lie on their side of a half-space, and have their label, at rates that the
mechanism's epsilons fix. With a class for each unit and labels that are as good as true, labels number the units, which
have no attributes here. So each law is a binomial test whose false alarm is exact, or a count.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy.stats import binom, binomtest

from cadp_fl.evaluation.attacks import PATIENT_RECORDS
from cadp_fl.evaluation.laws import Law, laws_of_order, laws_of_release, release_of_units
from cadp_fl.evaluation.probe import Probe, Released, spelled
from cadp_fl.evaluation.shuffled import DIMS, SHUFFLED_CLASSES, UNITS
from cadp_fl.privacy.labels import lie_probability
from cadp_fl.privacy.losses import Relation
from cadp_fl.privacy.mechanisms import PrivUnitMechanism
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.shuffling import half_spaces, mass_beyond

__all__ = ["laws_of_messages", "laws_of_numbered", "numbered", "shuffled_laws"]

_ALIKE = 4096
"""Units whose messages' sides and labels are counted."""

_NUMBERED_RELEASES, _NUMBERED_DIMS = 6, 8
_TRUTHFUL = 20.0
"""Epsilon of labels that number units: some 4e-7 of 200 are lies."""


def shuffled_laws(mechanism: PrivUnitMechanism, *, noise: NoiseSource) -> Iterator[Law]:
    """Yield the laws of a shuffled release's messages, units and order."""
    for label, signs in enumerate(([-1, 0], [1, 0], [0, 1])):
        probe = Probe(mechanism, DIMS, 0, clip_norm=1.0, classes=SHUFFLED_CLASSES)
        released = probe.release(
            np.repeat(spelled(np.array([signs])), _ALIKE, axis=0),
            labels=np.full(_ALIKE, label, dtype=np.int64),
            noise=noise.child("alike", label),
        )
        along = released.noised @ np.array(signs, dtype=np.float64)
        yield from laws_of_messages(mechanism, label, along, mechanism.threshold, released.labels)
    numbering = numbered(mechanism, UNITS, PATIENT_RECORDS)
    probe = Probe(numbering, _NUMBERED_DIMS, _NUMBERED_DIMS, clip_norm=1.0, classes=UNITS)
    releases = [
        release_of_units(probe, UNITS, _NUMBERED_DIMS, noise=noise.child("numbered", number), is_labelled=True)
        for number in range(_NUMBERED_RELEASES)
    ]
    yield from laws_of_numbered(releases, UNITS, PATIENT_RECORDS)


def numbered(mechanism: PrivUnitMechanism, units: int, places: int) -> PrivUnitMechanism:
    """Return the mechanism with a class for each unit, and labels that are as good as true: they number the units."""
    return replace(mechanism, label_epsilon=_TRUTHFUL, classes=units, shuffled_units=0, records_per_unit=places)


def laws_of_messages(
    mechanism: PrivUnitMechanism, label: int, along: np.ndarray, cut: float, released: np.ndarray
) -> Iterator[Law]:
    """Yield how often messages of units that are all alike lie on their side, have their label, and do both.

    Args:
        mechanism: that the units went through.
        label: of every unit.
        along: <v, u> of each message, float64 (units,).
        cut: that it is held against, at least the mechanism's threshold.
        released: label of each message, int64 (units,).
    """
    latent = half_spaces(mechanism.threshold, mechanism.latent_epsilon, Relation.REPLACE_ONE)
    on_side = mass_beyond(cut) * float(latent.ours[0])
    true = 1 - lie_probability(mechanism.label_epsilon, mechanism.classes)
    is_sided, is_true = along >= cut, released == label
    for name, seen, rate in (
        (f"side of class {label}", is_sided, on_side),
        (f"label of class {label}", is_true, true),
        (f"side and label of class {label}", is_sided & is_true, on_side * true),
    ):
        yield Law(name, float(binomtest(int(seen.sum()), seen.size, rate).pvalue) if seen.size else 0.0)


def laws_of_numbered(releases: list[Released], units: int, places: int) -> Iterator[Law]:
    """Yield the laws of releases whose labels number the units, whose latents are zero, and which have blanks.

    A label is a lie with a small probability, so a few may be missing: as many as the binomial law allows.

    Args:
        releases: at least two, of the same units; every second unit has a blank.
        units: number of units, even.
        places: m, of each.
    """
    counts = [np.bincount(each.labels, minlength=units) for each in releases]
    missing = [int(np.maximum(places - count, 0).sum()) for count in counts]
    total = units * places
    is_whole = all(len(each.labels) == total for each in releases)
    lies = binom(total * len(releases), lie_probability(_TRUTHFUL, units))
    yield Law("every unit once", float(lies.sf(sum(missing) - 1)) if is_whole else 0.0)
    as_numbered = [replace(each, units=each.labels) for each in releases]
    whole = [each.units for each, lost in zip(as_numbered, missing, strict=True) if is_whole and not lost]
    if len(whole) > 1:
        yield from laws_of_order(whole[0], whole[1], units, places)
    yield from laws_of_release(as_numbered[0], as_numbered[1])
    sums = [each.noised[each.labels % 2 == 1].sum(axis=1) for each in releases]
    signs = np.concatenate(sums) > 0
    yield Law("blanks", float(binomtest(int(signs.sum()), signs.size).pvalue) if signs.size else 0.0)
