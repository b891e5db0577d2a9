"""Attacks on what leaves beside a release: counts, evaluations, sums, moments and steps of DP-SGD.

Each calls what a site calls, on two data sets that differ in one patient of `PATIENT_RECORDS` records, the pair that
moves the output farthest. The statistic is the output along the line between the two, in units of the noise.

Where a call is slow, and gives many numbers, a draw is one of its numbers and not a call:

    left = (M(a)_j - M'(a)_j) / sqrt(2)        right = left of other numbers + |M_s(b) - M_s(a)|

M and M' are two calls, each number in units of its claimed noise, and M_s two calls with one seed, whose noise is the
same and falls out. What that certifies assumes that noise is added, to each number by itself. Noise that is smaller,
missing or repeated shows in the first part, and a data set that moves farther in the second, without any chance.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from scipy.special import ndtri
from scipy.stats import binomtest
from torch import nn

from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.data.units import Units
from cadp_fl.evaluation.attacks import PATIENT_RECORDS
from cadp_fl.evaluation.bounds import gaussian_bound, sampled_noise
from cadp_fl.evaluation.laws import Law, fresh_noise, independent_coins
from cadp_fl.evaluation.noised import evaluation_event, table_of
from cadp_fl.evaluation.probe import HUGE
from cadp_fl.privacy.accounting import calibrate_noise, epsilon_of
from cadp_fl.privacy.dpsgd import train_dp_sgd
from cadp_fl.privacy.events import GaussianHistogram, GaussianMoments, GaussianSum, PoissonGaussian, ProtectedEvent
from cadp_fl.privacy.histogram import noised_counts
from cadp_fl.privacy.moments import clipped_sum, joint_moments
from cadp_fl.privacy.noise import NoiseSource

__all__ = ["AGGREGATES", "Aggregate", "AggregateAttack", "noise_of_moments"]

Drawn = Callable[[bool, NoiseSource], np.ndarray]
"""(whether the right data set, noise) to a call's numbers, each in units of its claimed noise; float64 (numbers,)."""

Statistics = Callable[[bool, int, NoiseSource], np.ndarray]
"""(whether the right data set, how many draws, noise of them alone) to as many statistics, float64."""

Bound = Callable[[float, float, float], float]

_TABLES_AT_ONCE = 1 << 14
_CLASSES, _FEATURES, _WEIGHTS = 3, 32, 4096
_SAMPLING_RATE = 0.5
_CALLS_WATCHED, _STEPS_WATCHED = 512, 512
_FAR = 1e30
"""What a number that is not finite counts as."""

_LEAST_NOISE = 0.01
"""Of a sampled step that is priced, in units of C."""


@dataclass(frozen=True, eq=False)
class AggregateAttack:
    """A worst pair, and how to draw its statistic.

    Attributes:
        name: as reports print it.
        statistics: draws.
        divisor: of an audit's draws, it takes one in so many.
        bound: from a true and a false positive rate to the epsilon of a trade-off as claimed, at a delta.
    """

    name: str
    statistics: Statistics
    divisor: int = 1
    bound: Bound = gaussian_bound

    def draws_of(self, draws: int) -> int:
        """Return how many draws it takes of each side, of an audit of so many."""
        return max(32, draws // self.divisor // 2)


@dataclass(frozen=True, eq=False)
class Aggregate:
    """Something that leaves a site, calibrated for a claim.

    Attributes:
        event: what it costs.
        parameters: its clip norm and noise, as reports print them.
        attacks: on it.
        laws: tests of its noise, from a noise source.
    """

    event: ProtectedEvent
    parameters: dict[str, float | None]
    attacks: tuple[AggregateAttack, ...]
    laws: Callable[[NoiseSource], Iterable[Law]] = lambda noise: ()


def _counts(epsilon: float, delta: float, clip_norm: float) -> Aggregate:
    """Return the noised class counts of training records: a patient moves all of its records to another class."""

    def event_at(noise_std: float) -> GaussianHistogram:
        return GaussianHistogram(stage="counts", histograms=1, noise_std=noise_std, records_per_unit=PATIENT_RECORDS)

    event = event_at(calibrate_noise(lambda std: [event_at(std)], epsilon, delta, clip_norm=float(PATIENT_RECORDS)))
    left, right = (_class_counts(label) for label in (0, 1))
    return Aggregate(
        event,
        {"noise_std": event.noise_std, "records_per_unit": float(PATIENT_RECORDS)},
        (AggregateAttack("worst-pair", _of_tables(left, right, event), divisor=4),),
        laws=lambda noise: _laws_of_tables(left, event, noise),
    )


def _class_counts(label: int) -> np.ndarray:
    """Return the counts of a patient with one record fewer than it has places, and of others."""
    schema = Schema(name="audit", shape=(1, 1, 1), classes=tuple(map(str, range(_CLASSES))))
    labels = np.array([label, 0, 0, 1, 2], dtype=np.int64)
    records = Dataset(schema, np.zeros((5, 1, 1, 1), dtype=np.uint8), labels, np.array([0, 1, 1, 2, 3]))
    return Units.of(records, "patient", PATIENT_RECORDS).class_counts(records)


def _evaluation(epsilon: float, delta: float, clip_norm: float) -> Aggregate:
    """Return the noised table of a classifier on test records: a patient moves in every histogram of it."""
    event = evaluation_event(epsilon, delta, _CLASSES, PATIENT_RECORDS)
    left = _table(np.array([9.0, -9.0, -9.0]), 0)
    right = _table(np.array([-9.0, 9.0, 8.0]), 1)
    return Aggregate(
        event,
        {"noise_std": event.noise_std, "records_per_unit": float(PATIENT_RECORDS)},
        (AggregateAttack("worst-pair", _of_tables(left, right, event), divisor=20),),
        laws=lambda noise: _laws_of_tables(left, event, noise),
    )


def _table(log_odds: np.ndarray, label: int) -> np.ndarray:
    scores, labels = np.tile(log_odds, (PATIENT_RECORDS, 1)), np.full(PATIENT_RECORDS, label, dtype=np.int64)
    confusion, histograms = table_of(scores, labels)
    return np.concatenate([confusion.ravel(), histograms.ravel()])


def _of_tables(left: np.ndarray, right: np.ndarray, event: GaussianHistogram) -> Statistics:
    def statistics(is_right: bool, draws: int, noise: NoiseSource) -> np.ndarray:
        table, found = right if is_right else left, []
        for part, start in enumerate(range(0, draws, _TABLES_AT_ONCE)):
            tables = np.tile(table, (min(_TABLES_AT_ONCE, draws - start), 1))
            found.append(noised_counts(tables, event, noise=noise.child(part)) @ (right - left))
        return np.concatenate(found)

    return statistics


def _laws_of_tables(table: np.ndarray, event: GaussianHistogram, noise: NoiseSource) -> Iterator[Law]:
    """Yield the laws of the noise of two calls; a coin of its own decides the sign of noise that is rounded to zero."""
    shape, rows = (_CALLS_WATCHED, len(table)), []
    for call in range(2):
        rounded = noised_counts(np.tile(table, (_CALLS_WATCHED, 1)), event, noise=noise.child(call)) - table
        rows.append(rounded + noise.child("coins", call).uniform(rounded.size).reshape(shape) - 0.5)
    yield from fresh_noise("noise", *rows, batch=_CALLS_WATCHED)


def _sum(epsilon: float, delta: float, clip_norm: float) -> Aggregate:
    """Return the noised sum of clipped features: a patient's records all turn round."""

    def event_at(noise_std: float) -> GaussianSum:
        return GaussianSum(stage="moments", clip_norm=clip_norm, noise_std=noise_std, records_per_unit=PATIENT_RECORDS)

    scale = clip_norm * PATIENT_RECORDS
    event = event_at(calibrate_noise(lambda std: [event_at(std)], epsilon, delta, clip_norm=scale))
    axis = np.eye(_FEATURES)[0]

    def drawn(right: np.ndarray) -> Drawn:
        def of(is_right: bool, noise: NoiseSource) -> np.ndarray:
            places, blank = _among_others((right if is_right else -HUGE * axis) * clip_norm)
            return clipped_sum(places, event, noise=noise, blank=blank) / event.share_std

        return of

    pair = drawn(HUGE * axis)
    return Aggregate(
        event,
        {"clip_norm": clip_norm, "noise_std": event.noise_std, "records_per_unit": float(PATIENT_RECORDS)},
        (
            AggregateAttack("worst-pair", _of_numbers(pair), divisor=20),
            AggregateAttack("not-finite", _of_numbers(drawn(np.full(_FEATURES, math.nan))), divisor=200),
        ),
        laws=lambda noise: _laws_of_calls(pair, noise),
    )


def _moments(epsilon: float, delta: float, clip_norm: float) -> Aggregate:
    """Return noised moments, with weights at which both worst pairs, across classes and within, are as far apart."""

    def event_at(noise_std: float) -> GaussianMoments:
        half = math.sqrt(0.5)
        return GaussianMoments(
            stage="moments",
            noise_std=noise_std,
            clip_norm=clip_norm,
            count_weight=0.5,
            sum_weight=1.0,
            shared_weight=half,
            class_weight=half,
            records_per_unit=PATIENT_RECORDS,
        )

    event = event_at(calibrate_noise(lambda std: [event_at(std)], epsilon, delta, clip_norm=float(PATIENT_RECORDS)))
    centre = np.full(_FEATURES, clip_norm / 8)
    stds = noise_of_moments(event, _CLASSES, _FEATURES)

    def drawn(u: np.ndarray, label: int) -> Drawn:
        def of(is_right: bool, noise: NoiseSource) -> np.ndarray:
            places, blank = _among_others((u if is_right else np.eye(_FEATURES)[0]) * HUGE * clip_norm)
            labels = np.full(len(places), _CLASSES - 1, dtype=np.int64)
            labels[:PATIENT_RECORDS] = label if is_right else 0
            moments = joint_moments(
                places + centre, labels, event, classes=_CLASSES, centre=centre, noise=noise, blank=blank
            )
            parts = moments.arrays()
            return np.concatenate([parts[name].ravel() / std.ravel() for name, std in stds.items()])

        return of

    across = drawn(np.eye(_FEATURES)[1], 1)
    within = np.zeros(_FEATURES)
    within[:2] = -0.5, math.sqrt(0.75)  # the cosine -b^2 / (2 (s^2 + w^2))
    return Aggregate(
        event,
        {"clip_norm": clip_norm, "noise_std": event.noise_std, "records_per_unit": float(PATIENT_RECORDS)},
        (
            AggregateAttack("across-classes", _of_numbers(across), divisor=4),
            AggregateAttack("within-a-class", _of_numbers(drawn(within, 0)), divisor=20),
            AggregateAttack("not-finite", _of_numbers(drawn(np.full(_FEATURES, math.nan), 0)), divisor=200),
        ),
        laws=lambda noise: _laws_of_calls(across, noise, calls=64),
    )


def noise_of_moments(event: GaussianMoments, classes: int, dims: int) -> dict[str, np.ndarray]:
    """Return the claimed standard deviation of every number of moments as they are released, by part.

    Worked out here from sigma and the weights: an entry off a diagonal stands in the joint vector twice.
    """
    rows, columns = np.triu_indices(dims)
    triangle = np.where(rows == columns, 1.0, math.sqrt(0.5))
    return {
        "counts": event.noise_std / event.count_weight * np.ones(classes),
        "sums": event.noise_std / event.sum_weight * np.ones((classes, dims)),
        "shared": event.noise_std / event.shared_weight * triangle,
        "second": event.noise_std / event.class_weight * np.tile(triangle, (classes, 1)),
    }


def _among_others(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of a patient whose records are alike, of zero others, and of one blank; and which is blank."""
    places = np.zeros((PATIENT_RECORDS + 4, len(features)))
    places[:PATIENT_RECORDS] = features
    places[-1] = HUGE
    return places, np.arange(len(places)) == len(places) - 1


def _of_numbers(drawn: Drawn) -> Statistics:
    """Return the statistics whose draws are single numbers of calls, and whose right side is moved by the distance."""

    def statistics(is_right: bool, draws: int, noise: NoiseSource) -> np.ndarray:
        found: list[np.ndarray] = []
        while sum(map(len, found)) < draws:
            pair = [_finite(drawn(False, noise.child(len(found), side))) for side in range(2)]
            found.append((pair[0] - pair[1]) / math.sqrt(2))
        return np.concatenate(found)[:draws] + (_distance(drawn) if is_right else 0.0)

    return statistics


def _distance(drawn: Drawn) -> float:
    """Return the largest distance of the two data sets' outputs under the same noise, over a few."""
    return max(
        float(
            np.linalg.norm(
                _finite(drawn(True, NoiseSource.from_seed(seed)) - drawn(False, NoiseSource.from_seed(seed)))
            )
        )
        for seed in range(2)
    )


def _finite(values: np.ndarray) -> np.ndarray:
    """Return values with `FAR` in the place of those that are not finite."""
    finite: np.ndarray = np.nan_to_num(values, nan=_FAR, posinf=_FAR, neginf=-_FAR)
    return finite


def _laws_of_calls(drawn: Drawn, noise: NoiseSource, *, calls: int = _CALLS_WATCHED) -> Iterator[Law]:
    """Yield the laws of the noise of two calls in turns, each of a source of its own, less that of a third."""
    rows = [
        np.stack([drawn(False, noise.child(side, call)) - drawn(False, noise.child(side, call, "less"))
                  for call in range(calls)]) for side in range(2)
    ]  # fmt: skip
    yield from fresh_noise("noise", *rows, batch=calls)


class _Watched:
    """An optimizer that keeps every noised gradient, and moves no weight."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": parameters, "lr": 0.0}]
        self.seen: list[np.ndarray] = []

    def step(self) -> None:
        """Keep the gradients, flat."""
        gradients = [each.grad for group in self.param_groups for each in group["params"]]
        self.seen.append(torch.cat([each.flatten() for each in gradients if each is not None]).double().numpy())


def _dp_sgd(epsilon: float, delta: float, clip_norm: float) -> Aggregate:
    """Return a sampled step of DP-SGD: a patient's gradient turns round, in the weights and the bias of a layer.

    `canary` takes steps as they are, and assumes nothing. `sampled-canary` takes numbers of steps in which all are
    sampled, and prices what it certifies at the sampling rate, whose laws are tested by themselves.
    """

    def event_at(noise_std: float, rate: float = _SAMPLING_RATE, steps: int = 1) -> PoissonGaussian:
        return PoissonGaussian(
            stage="classifier", clip_norm=clip_norm, noise_std=noise_std, sampling_rate=rate, steps=steps
        )

    event = event_at(calibrate_noise(lambda std: [event_at(std)], epsilon, delta, clip_norm=clip_norm))
    inputs = np.tile(np.eye(_FEATURES)[0], (3, 1))

    def canary(is_right: bool, draws: int, noise: NoiseSource) -> np.ndarray:
        signs = np.array([HUGE if is_right else -HUGE, 0.0, 0.0])
        steps = _steps(inputs, signs, event_at(event.noise_std, steps=draws), noise)
        return _finite((steps[:, 0] + steps[:, -1]) / math.sqrt(2))

    def drawn(right: float) -> Drawn:
        def of(is_right: bool, noise: NoiseSource) -> np.ndarray:
            signs = np.array([right if is_right else -HUGE, 0.0, 0.0])
            wide = np.tile(np.eye(_WEIGHTS)[0], (3, 1))
            rows: np.ndarray = _steps(wide, signs, event_at(event.noise_std, rate=1.0), noise)[0] / event.noise_std
            return rows

        return of

    def of_steps(true_positives: float, false_positives: float, delta: float) -> float:
        noise = sampled_noise(true_positives, false_positives, _SAMPLING_RATE)
        return 0.0 if math.isinf(noise) else epsilon_of([event_at(noise * clip_norm)], delta)

    def of_numbers(true_positives: float, false_positives: float, delta: float) -> float:
        mu = min(float(ndtri(true_positives) - ndtri(false_positives)), 2 / _LEAST_NOISE)
        return epsilon_of([event_at(2 * clip_norm / mu)], delta) if mu > 2e-6 else 0.0

    return Aggregate(
        event,
        {"clip_norm": clip_norm, "noise_std": event.noise_std, "sampling_rate": _SAMPLING_RATE},
        (
            AggregateAttack("canary", canary, divisor=1000, bound=of_steps),
            AggregateAttack("sampled-canary", _of_numbers(drawn(HUGE)), divisor=4, bound=of_numbers),
            AggregateAttack("not-finite", _of_numbers(drawn(math.nan)), divisor=200, bound=of_numbers),
        ),
        laws=lambda noise: _laws_of_steps(event, noise),
    )


def _laws_of_steps(event: PoissonGaussian, noise: NoiseSource) -> Iterator[Law]:
    """Yield the laws of noise and samples of two calls: a unit's direction is an input of its own."""
    steps = event.model_copy(update={"steps": _STEPS_WATCHED})
    rows = [_steps(np.zeros((1, 64)), np.zeros(1), steps, noise.child(call)) for call in range(2)]
    yield from fresh_noise("noise", *rows, batch=_STEPS_WATCHED)
    yield Law("a step of no gradient is noised", float(all((row != 0).all() for row in rows)))
    silent = steps.model_copy(update={"noise_std": event.clip_norm * 1e-6})
    sampled = [
        _steps(np.eye(64), np.full(64, HUGE), silent, noise.child("samples", call))[:, :64] > event.clip_norm / 4
        for call in range(2)
    ]
    yield from independent_coins("samples", *sampled, batch=_STEPS_WATCHED)
    coins = np.concatenate(sampled)
    yield Law("sampling rate", float(binomtest(int(coins.sum()), coins.size, event.sampling_rate).pvalue))


def _steps(inputs: np.ndarray, signs: np.ndarray, event: PoissonGaussian, noise: NoiseSource) -> np.ndarray:
    """Return the noised sums of clipped gradients of all steps, (steps, inputs + 1): of weights, then of the bias.

    A patient's records are alike, and each has the gradient sign (x, 1).
    """
    model = nn.Linear(inputs.shape[1], 1)
    x, sign = torch.from_numpy(inputs).float(), torch.from_numpy(signs).float()
    owners = torch.arange(len(inputs)).repeat_interleave(PATIENT_RECORDS)
    watched = _Watched([])

    def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        watched.param_groups[0]["params"] = parameters
        return cast(torch.optim.Optimizer, watched)

    train_dp_sgd(
        model,
        lambda network, records: network(x[owners[records]])[:, 0] * sign[owners[records]],
        event,
        units=torch.arange(len(owners)).view(-1, PATIENT_RECORDS),
        optimizer=optimizer,
        noise=noise,
        physical_batch=1024,
    )
    sums: np.ndarray = np.stack(watched.seen) * (event.sampling_rate * len(inputs))
    return sums


AGGREGATES: dict[str, Callable[[float, float, float], Aggregate]] = {
    "class-counts": _counts,
    "evaluation": _evaluation,
    "sum": _sum,
    "moments": _moments,
    "dp-sgd": _dp_sgd,
}
"""From (epsilon, delta, C) to what leaves, by name."""
