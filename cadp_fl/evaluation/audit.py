"""An audit of what leaves a site: lower bounds on epsilon from attacks on the code that ships, and laws of a release.

Attacks on a mechanism go through `privatize`, with latents of records and patients, and with covered labels; so do the
laws of what no single record shows: noise is used once, the order says nothing, every unit is there once. A shuffled
release is attacked as a whole: see `shuffled`. What leaves beside a release is attacked where a site computes it:
`noised_counts`, `clipped_sum`, `joint_moments`, `train_dp_sgd`. `cadp_fl.standalone.audit` asks a whole site in memory,
which this layer does not know.

An accountant bounds epsilon from above, for the mechanism that an event describes. An audit bounds it from below, for
the code that runs. The lower bound is above the claim only by chance, at a false-alarm rate chosen beforehand, or
because the code does not do what its event says. An audit refutes; it proves no privacy.

Draws are counted as independent. They are if each record is released by itself and with fresh noise, as every event
claims. So where a bound is above the claim, either the trade-off or that independence is not what is claimed; and the
laws test the independence by itself. `bounds` says what a bound certifies.

Half of the false alarms are the attacks', and half the laws', shared equally (Bonferroni); each test is exact at its
share. So an audit of honest code refutes anything with at most the probability that was asked for.

References:
    Jagielski, Ullman, Oprea: Auditing differentially private machine learning: how private is private SGD?,
        arXiv 2006.07709.
    Nasr, Hayes, Steinke, Balle, Tramèr, Jagielski, Carlini, Terzis: Tight auditing of differentially private machine
        learning, arXiv 2302.07956.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cadp_fl.errors import ConfigError
from cadp_fl.evaluation.aggregates import AGGREGATES, Aggregate
from cadp_fl.evaluation.attacks import (
    CLASSES,
    PATIENT_RECORDS,
    Attack,
    attacks_on,
    draw_statistics,
    joint_labels,
    patient_attack,
)
from cadp_fl.evaluation.bounds import clopper_pearson, gaussian_bound, pure_bound, shuffled_bound
from cadp_fl.evaluation.findings import AttackResult, Finding, LawResult
from cadp_fl.evaluation.laws import Law, release_laws
from cadp_fl.evaluation.shuffled import (
    SHUFFLED,
    Guesses,
    guesses_by_a_place,
    guesses_by_all,
    place_releases_for,
    profile_of,
    release_by_probe,
    releases_for,
    shuffled_mechanism,
    worst_pair,
)
from cadp_fl.evaluation.shuffled_laws import shuffled_laws
from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.events import RandomizedResponse, Unprotected
from cadp_fl.privacy.mechanisms import MECHANISMS, Mechanism, PrivUnitMechanism, mechanism_type
from cadp_fl.privacy.noise import NoiseSource

__all__ = [
    "AuditSettings",
    "attack_result",
    "audit",
    "audit_aggregate",
    "audit_mechanism",
    "audit_shuffled",
    "auditable",
    "guess_result",
    "law_results",
    "protecting_mechanisms",
]

LEAST_DRAWS = 10_000
MOST_PILOTS = 1 << 13
"""Draws of each side that set an attack's threshold before, and apart from, those that are counted."""

LABEL_DRAWS_DIVISOR = 40
LARGEST_LABEL_EPSILON = 8.0
"""Beyond it, a lie is too rare to be counted in a million draws."""

Bound = Callable[[float, float, float], float]
Draw = Callable[[int, NoiseSource], tuple[np.ndarray, np.ndarray]]
"""(how many of each side, noise) to statistics of the left and of the right side."""


@dataclass(frozen=True)
class AuditSettings:
    """How thoroughly to attack, and at which delta.

    Attributes:
        delta: of the claims.
        clip_norm: C.
        dims: dimensions of a latent.
        draws: releases of the worst pair, half of each side; other attacks take a fixed part of it.
        false_alarm: probability that an audit of honest code refutes any of it.
    """

    delta: float
    clip_norm: float = 1.0
    dims: int = 16
    draws: int = 1_000_000
    false_alarm: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("delta", "false_alarm"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} is above 0 and below 1. Found {getattr(self, name):g}; use 1e-5, say.")
        if not 1e-6 <= self.clip_norm <= 1e6:
            raise ConfigError(f"clip_norm is from 1e-6 to 1e6. Found {self.clip_norm:g}; use 1, say.")
        if self.dims < 1:
            raise ConfigError(f"dims is at least 1. Found {self.dims}; use what a release has, 16, say.")
        if self.draws < LEAST_DRAWS:
            raise ConfigError(f"draws is at least {LEAST_DRAWS}. Found {self.draws}; fewer certify next to nothing.")


def protecting_mechanisms() -> tuple[str, ...]:
    """Return the names of all mechanisms that claim some protection."""
    return tuple(
        name
        for name, kind in MECHANISMS.items()
        if not isinstance(kind.calibrated(1.0, 1.0, 1e-5).event(), Unprotected)
    )


def auditable() -> tuple[str, ...]:
    """Return the names of all that an audit attacks: mechanisms of a release, a shuffle, what leaves beside it."""
    return (*protecting_mechanisms(), SHUFFLED, *AGGREGATES)


def audit(
    names: Sequence[str], epsilons: Sequence[float], settings: AuditSettings, *, noise: NoiseSource
) -> Iterator[Finding]:
    """Yield what the attacks on everything that is named find at every epsilon; the false alarms are shared equally.

    Args:
        names: of mechanisms, each of which is audited as a release with it, and of what leaves beside a release.
        epsilons: that the noise is calibrated for, at the settings' delta.
        noise: of this audit alone.

    Raises:
        ConfigError: there is no such thing, it claims nothing, or an epsilon is no claim.
        BudgetError: no noise meets a budget.
    """
    for epsilon in epsilons:
        if not 0 < epsilon < math.inf:
            raise ConfigError(f"epsilon is above 0, and finite. Found {epsilon:g}; use 1, say.")
    cells = [(name, epsilon) for name in dict.fromkeys(names) for epsilon in dict.fromkeys(epsilons)]
    audited = [_calibrated(name, epsilon, settings) for name, epsilon in cells]
    false_alarm = settings.false_alarm / max(1, len(cells))
    for (name, epsilon), each in zip(cells, audited, strict=True):
        own = noise.child(name, str(epsilon))
        if isinstance(each, Aggregate):
            yield audit_aggregate(name, each, settings, false_alarm=false_alarm, noise=own)
        elif isinstance(each, PrivUnitMechanism) and each.shuffled_units:
            yield audit_shuffled(each, settings, false_alarm=false_alarm, noise=own)
        else:
            yield audit_mechanism(each, settings, false_alarm=false_alarm, noise=own)


def _calibrated(name: str, epsilon: float, settings: AuditSettings) -> Mechanism | Aggregate:
    if name in AGGREGATES:
        return AGGREGATES[name](epsilon, settings.delta, settings.clip_norm)
    if name == SHUFFLED:
        return shuffled_mechanism(epsilon, settings.delta)
    if name not in MECHANISMS:
        raise ConfigError(f"Unknown mechanism '{name}'. Choose one of: {', '.join(sorted(auditable()))}.")
    mechanism = mechanism_type(name).calibrated(settings.clip_norm, epsilon, settings.delta)
    _check_claim(mechanism)
    return mechanism


def audit_mechanism(
    mechanism: Mechanism, settings: AuditSettings, *, false_alarm: float, noise: NoiseSource
) -> Finding:
    """Attack releases with a mechanism, and return what that certifies beside what its event claims.

    Args:
        mechanism: clips to the settings' C.
        false_alarm: probability that it is refuted if it does what its event says.
        noise: of this call alone.

    Raises:
        ConfigError: it claims nothing.
    """
    _check_claim(mechanism)
    clip_norm, claim = settings.clip_norm, epsilon_of([mechanism.event()], settings.delta)
    of_patients = mechanism.calibrated(clip_norm, claim, settings.delta, records_per_unit=PATIENT_RECORDS)
    limit = math.inf if _claims_gaussian(mechanism) else clip_norm
    released = [(mechanism, attack) for attack in attacks_on(settings.dims)]
    released.append((of_patients, patient_attack(settings.dims, limit)))
    share = false_alarm / 2 / (len(released) + 1)
    results = [_of_release(each, attack, settings, share, noise.child(attack.name)) for each, attack in released]
    results.append(_of_labels(mechanism, min(claim, LARGEST_LABEL_EPSILON), settings, share, noise.child("labels")))
    laws = release_laws(mechanism, clip_norm=clip_norm, noise=noise.child("laws"))
    return Finding(mechanism.name, mechanism.parameters(), claim, tuple(results), law_results(laws, false_alarm / 2))


def audit_shuffled(
    mechanism: PrivUnitMechanism, settings: AuditSettings, *, false_alarm: float, noise: NoiseSource
) -> Finding:
    """Attack shuffled releases, and return what that certifies beside what their event claims.

    Args:
        mechanism: with covered labels, and the number of units that are shuffled together.
        false_alarm: probability that it is refuted if it does what its event says.
        noise: of this call alone.
    """
    claim, pair = epsilon_of([mechanism.event()], settings.delta), worst_pair(mechanism.shuffled_units)
    guesses = (
        guesses_by_all(
            mechanism,
            release_by_probe(mechanism, pair),
            pair,
            releases_for(mechanism, settings.draws),
            noise.child("whole-release"),
        ),
        guesses_by_a_place(
            mechanism,
            release_by_probe(mechanism, pair, apart=True),
            pair,
            place_releases_for(settings.draws),
            noise.child("one-place"),
        ),
    )
    share = false_alarm / 2 / len(guesses)
    results = tuple(guess_result(each, mechanism, claim, settings.delta, share) for each in guesses)
    laws = law_results(shuffled_laws(mechanism, noise=noise.child("laws")), false_alarm / 2)
    name = f"{mechanism.name}, shuffled among {mechanism.shuffled_units} units"
    return Finding(name, mechanism.parameters(), claim, results, laws)


def audit_aggregate(
    name: str, aggregate: Aggregate, settings: AuditSettings, *, false_alarm: float, noise: NoiseSource
) -> Finding:
    """Attack what leaves beside a release, and return what that certifies beside what its event claims.

    Args:
        name: of it.
        aggregate: how to draw it.
        false_alarm: probability that it is refuted if it does what its event says.
        noise: of this call alone.
    """
    claim = epsilon_of([aggregate.event], settings.delta)
    share, results = false_alarm / 2 / len(aggregate.attacks), []
    for attack in aggregate.attacks:
        own, statistics = noise.child(attack.name), attack.statistics

        def draw(count: int, of: NoiseSource, statistics: Any = statistics) -> tuple[np.ndarray, np.ndarray]:
            return statistics(False, count, of.child("left")), statistics(True, count, of.child("right"))

        count = attack.draws_of(settings.draws)
        results.append(
            attack_result(
                name=attack.name,
                draw=draw,
                count=count,
                bound=attack.bound,
                claim=claim,
                delta=settings.delta,
                false_alarm=share,
                noise=own,
            )
        )
    laws = law_results(aggregate.laws(noise.child("laws")), false_alarm / 2)
    return Finding(name, aggregate.parameters, claim, tuple(results), laws)


def law_results(laws: Iterable[Law], false_alarm: float) -> tuple[LawResult, ...]:
    """Return which laws are broken, at a false alarm of all of them together."""
    tested = tuple(laws)
    return tuple(LawResult(law.name, law.p_value, law.p_value < false_alarm / max(1, len(tested))) for law in tested)


def _check_claim(mechanism: Mechanism) -> None:
    if isinstance(mechanism.event(), Unprotected):
        raise ConfigError(
            f"An audit compares with a claim. The mechanism '{mechanism.name}' claims none; choose one of: "
            f"{', '.join(auditable())}."
        )


def _of_release(
    mechanism: Mechanism, attack: Attack, settings: AuditSettings, false_alarm: float, noise: NoiseSource
) -> AttackResult:
    def draw(count: int, own: NoiseSource) -> tuple[np.ndarray, np.ndarray]:
        return draw_statistics(mechanism, attack, count, clip_norm=settings.clip_norm, noise=own)

    bound = gaussian_bound if _claims_gaussian(mechanism) else pure_bound
    claim = epsilon_of([mechanism.event()], settings.delta)
    count = attack.draws_of(settings.draws)
    return attack_result(
        name=attack.name,
        draw=draw,
        count=count,
        bound=bound,
        claim=claim,
        delta=settings.delta,
        false_alarm=false_alarm,
        noise=noise,
    )


def attack_result(
    name: str,
    draw: Draw,
    count: int,
    bound: Bound,
    claim: float,
    delta: float,
    false_alarm: float,
    noise: NoiseSource,
) -> AttackResult:
    """Set the threshold on pilot draws, count on fresh ones, and convert both rates through the trade-off claimed.

    Args:
        name: of the attack.
        draw: gives its statistics.
        count: draws of each side.
        bound: from a true and a false positive rate to an epsilon, at a delta.
        claim: epsilon.
        delta: of the claim.
        false_alarm: probability that the lower bound is above the claim of honest code.
        noise: of this call alone.
    """
    pilots = draw(min(math.ceil(count / 8), MOST_PILOTS), noise.child("pilot"))
    threshold = _best_threshold(*pilots) if bound is pure_bound else _midpoint(*pilots)
    left, right = draw(count, noise.child("draws"))
    true, false = int((right >= threshold).sum()), int((left >= threshold).sum())
    true_least, _ = clopper_pearson(true, len(right), false_alarm / 2)
    _, false_most = clopper_pearson(false, len(left), false_alarm / 2)
    return AttackResult(
        attack=name,
        draws=len(left) + len(right),
        true_positives=true / len(right),
        false_positives=false / len(left),
        lower_bound=bound(true_least, false_most, delta),
        claim=claim,
    )


def guess_result(
    guesses: Guesses, mechanism: PrivUnitMechanism, claim: float, delta: float, false_alarm: float
) -> AttackResult:
    """Return what guesses about a shuffled release certify, by how many of them are right.

    Args:
        guesses: with coins, so that each is right with the rate (1 + TPR - FPR) / 2, independently of the others.
        mechanism: as it is claimed.
        claim: epsilon.
        delta: of the claim.
        false_alarm: probability that the lower bound is above the claim of honest code.
    """
    right, left = guesses.of_right, guesses.of_left
    draws = len(right) + len(left)
    least = clopper_pearson(guesses.correct, draws, false_alarm)[0] if draws else 0.0
    return AttackResult(
        attack=guesses.attack,
        draws=draws,
        true_positives=float(right.mean()) if len(right) else 0.0,
        false_positives=float(left.mean()) if len(left) else 0.0,
        lower_bound=shuffled_bound(2 * least - 1, profile_of(mechanism), delta),
        claim=claim,
    )


def _of_labels(
    mechanism: Mechanism, epsilon: float, settings: AuditSettings, false_alarm: float, noise: NoiseSource
) -> AttackResult:
    """Compare what records of two classes leave with, over all pairs: the label, what they are decoded under, and both.

    Covered labels have no delta, so the bound is that of pure differential privacy.
    """
    event = RandomizedResponse(stage="labels", epsilon=epsilon)
    count = max(32, settings.draws // LABEL_DRAWS_DIVISOR // 2)
    joint = joint_labels(mechanism, event, count, clip_norm=settings.clip_norm, noise=noise)
    both = np.diagonal(joint, axis1=1, axis2=2)
    pairs = [
        (int(seen[true, true]), int(seen[other, true]))
        for seen in (joint.sum(axis=2), joint.sum(axis=1), both)
        for true in range(CLASSES)
        for other in range(CLASSES)
        if other != true
    ]
    share = false_alarm / 2 / len(pairs)
    bounds = [
        pure_bound(clopper_pearson(true, count, share)[0], clopper_pearson(false, count, share)[1], 0.0)
        for true, false in pairs
    ]
    true, false = pairs[int(np.argmax(bounds))]
    return AttackResult(
        attack="labels",
        draws=CLASSES * count,
        true_positives=true / count,
        false_positives=false / count,
        lower_bound=max(bounds),
        claim=epsilon,
    )


def _claims_gaussian(mechanism: Mechanism) -> bool:
    """Return whether a mechanism's event claims a Gaussian trade-off: it then holds the noise's standard deviation.

    Any other is bounded without an assumption, as an (epsilon, delta)-DP mechanism.
    """
    return hasattr(mechanism.event(), "noise_std")


def _midpoint(left: np.ndarray, right: np.ndarray) -> float:
    """Return the middle between the medians: a threshold that errs alike on both sides pins mu down best."""
    return float((np.median(left) + np.median(right)) / 2)


def _best_threshold(left: np.ndarray, right: np.ndarray) -> float:
    """Return the pilots' threshold that certifies most: beyond the centre of Laplace noise, or where a later one turns.

    Rates are held against the same limits as those that count, so that a rare output does not win by chance.
    """
    candidates = np.unique(np.quantile(right, np.linspace(0.05, 0.95, 19)))

    def certified(threshold: float) -> float:
        true, _ = clopper_pearson(int((right >= threshold).sum()), len(right), 1e-3)
        _, false = clopper_pearson(int((left >= threshold).sum()), len(left), 1e-3)
        return pure_bound(true, false, 0.0)

    return float(max(candidates, key=certified))
