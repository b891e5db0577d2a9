"""Attacks on a release: units that differ in one, and a statistic that tells which one was released.

    s = <W, privatize(records)>

Each goes through `privatize` with a `Probe`: encoding, clip, noise, shrinkage, decoding and quantization as they ship.
Under replace-one, any two units are neighbours, and a flow that a server chose may encode them as any two latents. So
the left and the right one are the latents that end farthest apart after an honest clip: near -C e and C e, whatever was
put in, in the L1 and in the L2 norm. The others aim at what an honest release does not do.

References:
    Jagielski, Ullman, Oprea: Auditing differentially private machine learning: how private is private SGD?,
        arXiv 2006.07709.
    Nasr, Hayes, Steinke, Balle, Tramèr, Jagielski, Carlini, Terzis: Tight auditing of differentially private machine
        learning, arXiv 2302.07956.
"""

import math
from dataclasses import dataclass

import numpy as np

from cadp_fl.evaluation.probe import BLACK, OVERFLOW, ZERO, Probe, spelled
from cadp_fl.privacy.events import RandomizedResponse
from cadp_fl.privacy.mechanisms import Mechanism
from cadp_fl.privacy.noise import NoiseSource

__all__ = ["CLASSES", "PATIENT_RECORDS", "Attack", "attacks_on", "draw_statistics", "joint_labels", "patient_attack"]

PATIENT_RECORDS = 2
"""m of a patient under attack."""

CLASSES = 3
"""Of covered labels: with two, a lie could only be one."""

_ORTHOGONAL_ROWS = 64
"""Records of a batch that a clip of the batch as a matrix would take together."""

_RELEASE_RECORDS = 1 << 16
"""Of one release, at most: each is released with a noise source of its own."""

_BYSTANDERS = 64
"""Other people's records in a release: some are zero, huge, black or not finite."""


@dataclass(frozen=True, eq=False)
class Attack:
    """Two units, or two batches that differ in one record, and the statistic that is larger for the right one.

    Attributes:
        name: of the attack, as reports print it.
        left: grey levels that spell the latents, uint8 (records, dims).
        right: the same of the other, (records, dims).
        weights: W of the statistic, (records, dims).
        kept: k, how many of the dims carry something of a record; the others an honest release draws afresh.
        is_batch: whether the records are those of a batch, each a unit by itself, which only a release of its own has.
        alone: whether each is a batch of one, all in one release.
        limit: records' own statistics count up to there, on both sides: beyond the centres of Laplace noise, each
            output is as telling as any other.
        divisor: of an audit's draws, this attack takes one in so many.
        most: of draws of each side.
    """

    name: str
    left: np.ndarray
    right: np.ndarray
    weights: np.ndarray
    kept: int
    is_batch: bool = False
    alone: bool = False
    limit: float = math.inf
    divisor: int = 20
    most: int = 1 << 62

    def draws_of(self, draws: int) -> int:
        """Return how many draws it takes of each side, of an audit of so many."""
        return max(32, min(self.most, draws // self.divisor // 2))


def attacks_on(dims: int) -> tuple[Attack, ...]:
    """Return the attacks on a release of latents of `dims` dimensions, each record a unit.

    The first is the worst pair for an honest mechanism of either norm, a vertex of the L1 ball and its opposite. Then:

    - `not-finite`: a record that overflows, and shows itself if the clip lets it through;
    - `untouched`: records that differ in a latent which is to be drawn afresh;
    - `flat`: batches of one, +-C (1, ..., 1): 2 C dims apart in L1 where a clip takes the norm of a *matrix* as the
      largest sum of a column;
    - `orthogonal`: orthogonal rows of length C, all at most C in the spectral norm. Where a clip takes that norm of the
      batch, one huge row in the place of the first crushes all others, and the batch moves by C sqrt(records + 3).
    """
    axis = _axis(dims + 1, 0)
    beyond = _axis(dims + 1, dims)
    flat = np.ones((1, _ORTHOGONAL_ROWS), dtype=np.int64)
    rows = np.eye(_ORTHOGONAL_ROWS, dtype=np.int64)
    first = np.zeros_like(rows)
    first[0, 0] = 1
    crushing = np.where(first == 1, spelled(-rows), spelled(rows, huge=False))
    return (
        Attack("worst-pair", spelled(-axis), spelled(axis), axis, dims, divisor=1),
        Attack("not-finite", spelled(-axis), np.full_like(spelled(axis), OVERFLOW), axis, dims),
        Attack("untouched", spelled(-beyond), spelled(beyond), beyond, dims),
        Attack("flat", spelled(-flat), spelled(flat), flat, _ORTHOGONAL_ROWS, alone=True, divisor=100, most=1000),
        Attack(
            "orthogonal",
            spelled(rows, huge=False),
            crushing,
            -rows - first,
            _ORTHOGONAL_ROWS,
            is_batch=True,
            divisor=200,
            most=500,
        ),
    )


def patient_attack(dims: int, limit: float) -> Attack:
    """Return the worst pair of patients: all of the records of one end at -C e, and all of the other's at C e."""
    axis = np.repeat(_axis(dims, 0), PATIENT_RECORDS, axis=0)
    return Attack("patient", spelled(-axis), spelled(axis), axis, dims, limit=limit, divisor=4)


def draw_statistics(
    mechanism: Mechanism, attack: Attack, draws: int, *, clip_norm: float, noise: NoiseSource
) -> tuple[np.ndarray, np.ndarray]:
    """Return at least `draws` statistics of the left side and as many of the right one, float64.

    Both sides are in the same releases, in a random order, among others' records. Memory is that of one release.

    Args:
        mechanism: of the release.
        clip_norm: C.
        noise: for the releases; each has a child.
    """
    if attack.is_batch:
        return _draw_batches(mechanism, attack, draws, clip_norm=clip_norm, noise=noise)
    m, dims = attack.left.shape
    most = max(2, (_RELEASE_RECORDS if not attack.alone else 1 << 10) // m - _BYSTANDERS)
    probe = Probe(
        mechanism, attack.kept, dims - attack.kept, clip_norm=clip_norm, numbers=min(2 * draws, most) + _BYSTANDERS
    )
    others = np.repeat(_bystanders(dims), m, axis=0)
    left, right = [], []
    for release, start in enumerate(range(0, 2 * draws, most)):
        units = min(most, 2 * draws - start)
        is_right = np.arange(units) % 2 == 1
        levels = np.where(is_right[:, None, None], attack.right, attack.left).reshape(-1, dims)
        released = probe.release(
            np.concatenate([levels, others]),
            noise=noise.child(release),
            patients=None if m == 1 else np.repeat(np.arange(units + _BYSTANDERS), m),
            records_per_unit=m,
            part_records=1 if attack.alone else 4096,
        )
        values = np.concatenate([released.noised, released.fresh], axis=1) @ attack.weights[0].astype(np.float64)
        values = np.clip(values, -attack.limit, attack.limit)
        statistics = np.bincount(released.units, values, minlength=units)[:units]
        left.append(statistics[~is_right])
        right.append(statistics[is_right])
    return np.concatenate(left), np.concatenate(right)


def _draw_batches(
    mechanism: Mechanism, attack: Attack, draws: int, *, clip_norm: float, noise: NoiseSource
) -> tuple[np.ndarray, np.ndarray]:
    rows, dims = attack.left.shape
    probe = Probe(mechanism, attack.kept, dims - attack.kept, clip_norm=clip_norm, numbers=rows)

    def statistic(levels: np.ndarray, own: NoiseSource) -> float:
        released = probe.release(levels, noise=own)
        values = np.concatenate([released.noised, released.fresh], axis=1)
        return float((values * attack.weights[released.units]).sum())

    left, right = (
        np.array([statistic(levels, noise.child(name, draw)) for draw in range(draws)])
        for name, levels in (("left", attack.left), ("right", attack.right))
    )
    return left, right


def joint_labels(
    mechanism: Mechanism, event: RandomizedResponse, draws: int, *, clip_norm: float, noise: NoiseSource
) -> np.ndarray:
    """Return how often records of a class leave with a label, decoded under a condition, int64.

    Latents are those of the worst pair, so that a label may depend on them as well.

    Args:
        mechanism: of the release.
        event: how labels are covered, in `CLASSES` classes.
        draws: of each class.
        clip_norm: C.
        noise: for the releases; each has a child.

    Returns:
        (true classes, released labels, conditions).
    """
    probe = Probe(mechanism, 1, 1, clip_norm=clip_norm, labels=event, classes=CLASSES)
    counts = np.zeros((CLASSES,) * 3, dtype=np.int64)
    for label in range(CLASSES):
        for release, start in enumerate(range(0, draws, _RELEASE_RECORDS)):
            records = min(_RELEASE_RECORDS, draws - start)
            levels = spelled(np.arange(records)[:, None] % 2 * 2 - 1)
            released = probe.release(
                levels, labels=np.full(records, label, dtype=np.int64), noise=noise.child(label, release)
            )
            np.add.at(counts[label], (released.labels, released.conditions), 1)
    return counts


def _axis(dims: int, index: int) -> np.ndarray:
    axis = np.zeros((1, dims), dtype=np.int64)
    axis[0, index] = 1
    return axis


def _bystanders(dims: int) -> np.ndarray:
    """Return what other records spell, (_BYSTANDERS, dims): most are short, some zero, huge, black or not finite."""
    signs = np.arange(_BYSTANDERS * dims).reshape(-1, dims) % 3 - 1
    others = spelled(signs, huge=False)
    others[0], others[1], others[2] = ZERO, BLACK, OVERFLOW
    others[3] = spelled(signs[3])
    return others
