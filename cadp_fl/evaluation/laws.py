"""Laws that an epsilon rests on and no single record shows: fresh noise, a secret order, every unit once.

An event prices each record by itself. That is right only if no noise is used twice, for another record, in another
latent, batch or release, if the order says nothing, and if each unit has exactly its m places. Where records spell
zero, a release is its noise, whose signs are fair coins: two that have nothing to do with each other agree half of the
time. So each law is a binomial test whose false alarm is exact, or a count that an honest release never misses.

Two values that depend on each other with agreeing signs as often as not are not found, nor what no law compares.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, hypergeom, norm

from cadp_fl.evaluation.attacks import CLASSES, PATIENT_RECORDS
from cadp_fl.evaluation.probe import BLACK, ZERO, Probe, Released
from cadp_fl.privacy.events import RandomizedResponse
from cadp_fl.privacy.mechanisms import Mechanism
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.release.privatize import BATCH_RECORDS

__all__ = [
    "FAIR_LIES",
    "Law",
    "fresh_noise",
    "independent_coins",
    "laws_of_labels",
    "laws_of_numbers",
    "laws_of_order",
    "laws_of_release",
    "laws_of_units",
    "release_laws",
    "release_of_units",
]

FAIR_LIES = float(np.log(CLASSES - 1))
"""Epsilon of labels at which a lie is as likely as the truth."""

_MEDIAN = float(norm.ppf(0.75))
_QUIET_EPSILON = 100.0
"""Of a release whose noise hides no latent of C, so that what a blank was made from would show."""

_UNITS = 2048
_DIMS = 8
_PART_RECORDS = 2 * BATCH_RECORDS


@dataclass(frozen=True)
class Law:
    """What a law's test gave.

    Attributes:
        name: of the law, as reports print it.
        p_value: probability of what was seen, or worse, if the law holds; 0 where it cannot hold.
    """

    name: str
    p_value: float


def release_laws(mechanism: Mechanism, *, clip_norm: float, noise: NoiseSource) -> tuple[Law, ...]:
    """Return how the laws of two releases of the same patients hold, and of two with covered labels.

    Args:
        mechanism: of the releases.
        clip_norm: C.
        noise: of the releases; each has a child.
    """

    def of_units(each: Mechanism, number: int) -> Released:
        probe = Probe(each, _DIMS, _DIMS, clip_norm=clip_norm, numbers=_UNITS)
        return release_of_units(probe, _UNITS, _DIMS, noise=noise.child("units", number))

    first, second = (of_units(mechanism, number) for number in range(2))
    lies = RandomizedResponse(stage="labels", epsilon=FAIR_LIES)
    probe = Probe(mechanism, _DIMS, _DIMS, clip_norm=clip_norm, labels=lies, classes=CLASSES)
    zeros = np.full((_UNITS, _DIMS), ZERO, dtype=np.uint8)
    covered = [
        probe.release(zeros, noise=noise.child("labels", number), part_records=_PART_RECORDS) for number in range(2)
    ]
    quiet = mechanism.calibrated(clip_norm, _QUIET_EPSILON, 1e-5)
    third = of_units(quiet, 2)
    has_blank = np.arange(_UNITS) % 2 == 1
    return (
        *laws_of_units(first.units, second.units, _UNITS, PATIENT_RECORDS),
        *laws_of_release(first, second),
        Law("blanks", _fair(third.noised[has_blank[third.units % _UNITS], 0] > 0)),
        *laws_of_labels(*covered),
    )


def laws_of_units(first: np.ndarray, second: np.ndarray, units: int, places: int) -> Iterator[Law]:
    """Yield the laws of which units are where in two releases: each once, and in an order that says nothing.

    Units 2 i and 2 i + 1 differ in what they hold, and which of the two is brighter changes with i.

    Args:
        first: number of each record's unit, in the order of a release, int64 (records,).
        second: likewise.
        units: how many there are, even.
        places: m, that each has.
    """
    whole = [np.array_equal(np.sort(each), np.repeat(np.arange(units), places)) for each in (first, second)]
    yield Law("every unit once", float(all(whole)))
    if all(whole):
        yield from laws_of_order(first, second, units, places)


def laws_of_order(first: np.ndarray, second: np.ndarray, units: int, places: int) -> Iterator[Law]:
    """Yield the laws of the order of two releases that hold every unit, as `laws_of_units` takes them."""
    places_of = [np.argsort(each, kind="stable")[::places] for each in (first, second)]
    earlier = [where[::2] < where[1::2] for where in places_of]
    yield Law("order and input", _fair(earlier[0]))
    yield Law("order and halves", _fair(places_of[0][: units // 2] < places_of[0][units // 2 :]))
    yield Law("order and content", _fair(earlier[0] == _is_bright(np.arange(0, units, 2))))
    yield Law("order of releases", _fair(earlier[0] == earlier[1]))


def laws_of_release(first: Released, second: Released) -> Iterator[Law]:
    """Yield the laws of the noise of two releases whose records all spell zero."""
    yield from fresh_noise("noise", first.noised, second.noised, batch=BATCH_RECORDS)
    rows = [first.noised, second.noised]
    if first.noised.shape == first.fresh.shape:
        yield from fresh_noise("fresh latents", first.fresh, second.fresh, batch=BATCH_RECORDS)
        yield Law("noise and fresh latents", _agreeing(first.noised, first.fresh))
        rows += [first.fresh, second.fresh]
    ordered = [each.noised[np.argsort(each.units, kind="stable")] for each in (first, second)]
    if ordered[0].shape == ordered[1].shape:
        yield Law("noise of a unit", _agreeing(*ordered))
    drawn = np.concatenate(rows)
    yield Law("no noise twice", float(len(np.unique(drawn, axis=0)) == len(drawn)))


def laws_of_labels(first: Released, second: Released) -> Iterator[Law]:
    """Yield the laws of the labels of two releases in which all true labels are 0 and `FAIR_LIES` covers them."""
    lies = [each.labels != 0 for each in (first, second)]
    yield from independent_coins("labels", lies[0][:, None], lies[1][:, None], batch=BATCH_RECORDS)
    yield Law("lies", _fair(np.concatenate(lies)))
    yield Law("decoded as released", float(all(np.array_equal(r.labels, r.conditions) for r in (first, second))))
    magnitudes = np.abs(first.noised).reshape(-1)[: len(lies[0])]
    yield Law("labels and noise", _unrelated(lies[0], magnitudes > np.median(magnitudes)))


def fresh_noise(name: str, first: np.ndarray, second: np.ndarray, *, batch: int) -> Iterator[Law]:
    """Yield the laws of noise (records, dims) of two releases, in their order: its signs are independent fair coins."""
    yield from independent_coins(name, first > 0, second > 0, batch=batch)


def independent_coins(name: str, first: np.ndarray, second: np.ndarray, *, batch: int) -> Iterator[Law]:
    """Yield the laws of coins, bool (records, dims), of two releases: none has to do with another.

    Args:
        name: of the coins, as reports print it.
        first: coins of a release, in its order.
        second: of another.
        batch: records that are computed at once.
    """
    yield Law(f"{name} of neighbours", _fair(first[1:] == first[:-1]))
    if first.shape[1] > 1:
        yield Law(f"{name} of dimensions", _fair(first[:, 1:] == first[:, :-1]))
    for label, lag in (("batches", batch), ("parts", 2 * batch)):
        if len(first) > lag:
            yield Law(f"{name} of {label}", _fair(first[lag:] == first[:-lag]))
    shared = min(len(first), len(second))
    yield Law(f"{name} of releases", _fair(first[:shared] == second[:shared]))


def laws_of_numbers(name: str, calls: Sequence[np.ndarray]) -> Iterator[Law]:
    """Yield the laws of numbers that several calls gave of the same data, each in units of its claimed noise.

    Two calls differ by their noise alone: by less than .67 sqrt(2) as often as not. Numbers that agree, as whole ones
    may, count as one of the signs in turns.

    Args:
        name: of the numbers, as reports print it.
        calls: an even number of them, each float64 (numbers,).
    """
    apart = np.concatenate([first - second for first, second in zip(calls[::2], calls[1::2], strict=True)])
    yield Law(f"{name}: width of noise", _fair(np.abs(apart) < _MEDIAN * math.sqrt(2)))
    turns = np.where(np.arange(len(apart)) // 2 % 2 == 0, 1.0, -1.0)
    rows = np.where(apart == 0, turns, apart).reshape(len(calls) // 2, -1)
    half = len(rows) // 2
    yield Law(f"{name}: noise of neighbours", _agreeing(rows[:, 1:], rows[:, :-1]))
    yield Law(f"{name}: noise of calls", _agreeing(rows[:half], rows[half : 2 * half]))


def release_of_units(probe: Probe, units: int, dims: int, *, noise: NoiseSource, is_labelled: bool = False) -> Released:
    """Release patients whose records all spell zero; every second one has a blank.

    Args:
        probe: releases them.
        units: number of patients.
        dims: that records spell.
        noise: of the release.
        is_labelled: whether labels number the patients.
    """
    numbers = np.arange(units)
    patients = np.repeat(numbers, np.where(numbers % 2 == 1, PATIENT_RECORDS - 1, PATIENT_RECORDS))
    return probe.release(
        np.full((len(patients), dims), ZERO, dtype=np.uint8),
        noise=noise,
        labels=patients if is_labelled else None,
        patients=patients,
        records_per_unit=PATIENT_RECORDS,
        brightness=np.where(_is_bright(patients), np.uint8(255), np.uint8(BLACK)),
        part_records=_PART_RECORDS,
    )


def _is_bright(units: np.ndarray) -> np.ndarray:
    """Return which units are bright: one of 2 i and 2 i + 1, in turns."""
    bright: np.ndarray = (units + units // 2) % 2 == 0
    return bright


def _fair(coins: np.ndarray) -> float:
    """Return the two-sided p-value of fair coins."""
    return float(binomtest(int(coins.sum()), coins.size).pvalue) if coins.size else 1.0


def _agreeing(first: np.ndarray, second: np.ndarray) -> float:
    return _fair((first > 0) == (second > 0))


def _unrelated(first: np.ndarray, second: np.ndarray) -> float:
    """Return twice the smaller tail of Fisher's exact test, whether two coins of any bias are independent."""
    both, law = int((first & second).sum()), hypergeom(len(first), int(first.sum()), int(second.sum()))
    return min(1.0, 2 * min(float(law.cdf(both)), float(law.sf(both - 1))))
