"""What an audit found: what attacks certified, and how laws held, beside a claim."""

from dataclasses import dataclass
from typing import Any

__all__ = ["AttackResult", "Finding", "LawResult"]


@dataclass(frozen=True)
class AttackResult:
    """What an attack certified.

    Attributes:
        attack: its name.
        draws: of both sides together.
        true_positives: share of the right side's outputs that were beyond the threshold.
        false_positives: share of the left side's.
        lower_bound: on epsilon, at the attack's share of the false alarms.
        claim: that it is held against.
    """

    attack: str
    draws: int
    true_positives: float
    false_positives: float
    lower_bound: float
    claim: float

    @property
    def is_refuting(self) -> bool:
        """Whether what it certified is above the claim."""
        return self.lower_bound > self.claim


@dataclass(frozen=True)
class LawResult:
    """How a law of a release held.

    Attributes:
        law: its name.
        p_value: probability of what was seen, or worse, if it holds.
        is_broken: whether that is below the law's share of the false alarms.
    """

    law: str
    p_value: float
    is_broken: bool


@dataclass(frozen=True)
class Finding:
    """What the attacks on one mechanism found, or on something else that leaves a site.

    Attributes:
        mechanism: its name.
        parameters: its clip norm and noise.
        claim: epsilon of its event, under replace-one.
        attacks: what each gave.
        laws: how each held.
    """

    mechanism: str
    parameters: dict[str, float | None]
    claim: float
    attacks: tuple[AttackResult, ...]
    laws: tuple[LawResult, ...]

    @property
    def strongest(self) -> AttackResult:
        """The attack with the highest lower bound."""
        return max(self.attacks, key=lambda result: result.lower_bound)

    @property
    def lower_bound(self) -> float:
        """Certified lower bound on epsilon."""
        return self.strongest.lower_bound

    @property
    def broken_laws(self) -> tuple[str, ...]:
        """Names of the laws that are broken."""
        return tuple(result.law for result in self.laws if result.is_broken)

    @property
    def is_refuted(self) -> bool:
        """Whether the code does not do what its event says."""
        return bool(self.broken_laws) or any(result.is_refuting for result in self.attacks)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "mechanism": self.mechanism,
            "parameters": self.parameters,
            "claim": self.claim,
            "lower_bound": self.lower_bound,
            "refuted": self.is_refuted,
            "attacks": [vars(result) for result in self.attacks],
            "laws": [vars(result) for result in self.laws],
        }
