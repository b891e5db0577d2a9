"""An audit of the mechanisms: a lower bound on epsilon, from attacks on the very clip and noise that releases use.

An accountant bounds epsilon from above, for the mechanism that an event describes. An audit bounds it from below, for
the code that runs. The lower bound is above the claim only by chance, at a false-alarm rate chosen beforehand, or
because the code does not do what its event says. An audit refutes; it proves no privacy.

Draws are counted as independent. They are if each record is released by itself and with fresh noise, as every event
claims. So where a bound is above the claim, either the trade-off or that independence is not what is claimed. `bounds`
says what a bound certifies.

References:
    Jagielski, Ullman, Oprea: Auditing differentially private machine learning: how private is private SGD?,
        arXiv 2006.07709.
    Nasr, Hayes, Steinke, Balle, Tramèr, Jagielski, Carlini, Terzis: Tight auditing of differentially private machine
        learning, arXiv 2302.07956.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cadp_fl.errors import ConfigError
from cadp_fl.evaluation.attacks import Attack, attacks_on, draw_statistics
from cadp_fl.evaluation.bounds import clopper_pearson, gaussian_bound, pure_bound
from cadp_fl.privacy.accounting import Unprotected, epsilon_of
from cadp_fl.privacy.mechanisms import MECHANISMS, Mechanism, mechanism_type
from cadp_fl.privacy.noise import NoiseSource

__all__ = ["AttackResult", "AuditSettings", "Finding", "audit", "audit_mechanism", "protecting_mechanisms"]

LEAST_DRAWS = 10_000
MOST_PILOTS = 2_048
"""Draws of each record that set an attack's threshold before, and apart from, those that are counted."""

PURE_TRUE_POSITIVES = 0.45
"""Below half, a threshold is beyond the centre of Laplace noise, where each output is e^epsilon times likelier."""


@dataclass(frozen=True)
class AuditSettings:
    """How thoroughly to attack, and at which delta.

    Attributes:
        delta: of the claims.
        clip_norm: C.
        dims: dimensions of a latent.
        draws: releases of the worst pair, half of each record; other attacks take a fixed part of it.
        false_alarm: probability that an audit of honest mechanisms refutes any of them.
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


@dataclass(frozen=True)
class AttackResult:
    """What an attack certified.

    Attributes:
        attack: its name.
        draws: of both records together.
        true_positives: share of the right record's outputs that were beyond the threshold.
        false_positives: share of the left record's.
        lower_bound: on epsilon, at the attack's share of the false alarms.
    """

    attack: str
    draws: int
    true_positives: float
    false_positives: float
    lower_bound: float


@dataclass(frozen=True)
class Finding:
    """What the attacks on one mechanism found.

    Attributes:
        mechanism: its name.
        parameters: its clip norm and noise.
        claim: epsilon of its event, under replace-one.
        attacks: what each gave.
    """

    mechanism: str
    parameters: dict[str, float | None]
    claim: float
    attacks: tuple[AttackResult, ...]

    @property
    def strongest(self) -> AttackResult:
        """The attack with the highest lower bound."""
        return max(self.attacks, key=lambda result: result.lower_bound)

    @property
    def lower_bound(self) -> float:
        """Certified lower bound on epsilon."""
        return self.strongest.lower_bound

    @property
    def is_refuted(self) -> bool:
        """Whether the mechanism does not do what its event says."""
        return self.lower_bound > self.claim

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "mechanism": self.mechanism,
            "parameters": self.parameters,
            "claim": self.claim,
            "lower_bound": self.lower_bound,
            "refuted": self.is_refuted,
            "attacks": [vars(result) for result in self.attacks],
        }


def protecting_mechanisms() -> tuple[str, ...]:
    """Return the names of all mechanisms that claim some protection."""
    return tuple(
        name
        for name, kind in MECHANISMS.items()
        if not isinstance(kind.calibrated(1.0, 1.0, 1e-5).event(), Unprotected)
    )


def audit(
    names: Sequence[str], epsilons: Sequence[float], settings: AuditSettings, *, noise: NoiseSource
) -> Iterator[Finding]:
    """Yield what the attacks on every mechanism at every epsilon find; the false alarms are shared equally.

    Args:
        names: of mechanisms.
        epsilons: that the mechanisms are calibrated for, at the settings' delta.
        noise: of this audit alone.

    Raises:
        ConfigError: there is no such mechanism, or it claims nothing.
        BudgetError: no noise meets a budget.
    """
    cells = [(name, epsilon) for name in dict.fromkeys(names) for epsilon in dict.fromkeys(epsilons)]
    mechanisms = [mechanism_type(name).calibrated(settings.clip_norm, each, settings.delta) for name, each in cells]
    for mechanism in mechanisms:
        _check_claim(mechanism)
    false_alarm = settings.false_alarm / max(1, len(cells))
    for (name, epsilon), mechanism in zip(cells, mechanisms, strict=True):
        yield audit_mechanism(mechanism, settings, false_alarm=false_alarm, noise=noise.child(name, str(epsilon)))


def audit_mechanism(
    mechanism: Mechanism, settings: AuditSettings, *, false_alarm: float, noise: NoiseSource
) -> Finding:
    """Attack a mechanism, and return what that certifies beside what its event claims.

    Args:
        mechanism: clips to the settings' C.
        false_alarm: probability that it is refuted if it does what its event says.
        noise: of this call alone.

    Raises:
        ConfigError: it claims nothing.
    """
    _check_claim(mechanism)
    attacks = attacks_on(settings.clip_norm, settings.dims)
    return Finding(
        mechanism.name,
        mechanism.parameters(),
        epsilon_of([mechanism.event()], settings.delta),
        tuple(
            _run(mechanism, attack, settings, false_alarm / len(attacks), noise.child(attack.name))
            for attack in attacks
        ),
    )


def _check_claim(mechanism: Mechanism) -> None:
    if isinstance(mechanism.event(), Unprotected):
        raise ConfigError(
            f"An audit compares with a claim. The mechanism '{mechanism.name}' claims none; choose one of: "
            f"{', '.join(protecting_mechanisms())}."
        )


def _run(
    mechanism: Mechanism, attack: Attack, settings: AuditSettings, false_alarm: float, noise: NoiseSource
) -> AttackResult:
    """Set the threshold on pilot draws, count on fresh ones, and convert both rates through the trade-off claimed."""
    gaussian = _claims_gaussian(mechanism)
    count = attack.draws_of(settings.draws)
    pilots = draw_statistics(mechanism, attack, min(math.ceil(count / 8), MOST_PILOTS), noise=noise.child("pilot"))
    threshold = _midpoint(*pilots) if gaussian else torch.quantile(pilots[1], 1 - PURE_TRUE_POSITIVES)
    left, right = draw_statistics(mechanism, attack, count, noise=noise.child("draws"))
    true, false = int((right >= threshold).sum()), int((left >= threshold).sum())
    true_least, _ = clopper_pearson(true, len(right), false_alarm / 2)
    _, false_most = clopper_pearson(false, len(left), false_alarm / 2)
    bound = gaussian_bound if gaussian else pure_bound
    return AttackResult(
        attack=attack.name,
        draws=len(left) + len(right),
        true_positives=true / len(right),
        false_positives=false / len(left),
        lower_bound=bound(true_least, false_most, settings.delta),
    )


def _claims_gaussian(mechanism: Mechanism) -> bool:
    """Tell whether a mechanism's event claims a Gaussian trade-off: it then holds the noise's standard deviation.

    Any other is bounded without an assumption, as an (epsilon, delta)-DP mechanism.
    """
    return hasattr(mechanism.event(), "noise_std")


def _midpoint(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the middle between the medians: a threshold that errs alike on both sides pins mu down best."""
    return (left.median() + right.median()) / 2
