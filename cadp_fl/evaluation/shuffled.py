"""Attacks on a shuffled release by PrivUnit, and laws of its messages: n units, covered labels, one secret order.

The attacker knows every unit but one, and sees the whole release. By a coin, the unit in question holds record x or x',
which are hardest to hide where their latents are opposite and their labels differ. All others are alike: at right
angles to both, and of a third class. With w and w' the densities of their messages over that of the others, its
likelihood ratio is

    log P(release | x') - log P(release | x) = log sum_i w'(m_i) - log sum_i w(m_i)

in which the order is no more than one of n! equally likely ones. The guess is x' where that is above 0. So the number
of right guesses is binomial, with the rate (1 + TPR - FPR) / 2, whatever the statistic.

The others were chosen by how well the best attacker would guess, with n = 200 and 10 classes: at right angles and of a
third class, TPR - FPR is .093 at epsilon 1 and .304 at epsilon 3, where the privacy blanket allows .103 and .319. Any
other angle leaves less, down to .080 and .246 at 15 degrees, as do others of the class of x or x', or with no
direction.

So with infinitely many draws this attack would certify .877 of epsilon 1 and 2.869 of epsilon 3 by `shuffled_bound`,
and .852 and 2.728 by `pure_bound` at delta 1e-5. That bound reaches .32 and 1.65 with 100,000 draws of each side.

A second attack asks whether the order tells anything: it guesses by the message in one place, which a pilot chooses.
Where the order is kept, that message is the unit's own, and hides behind nobody.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from cadp_fl.evaluation.probe import Probe, Released, spelled
from cadp_fl.privacy.cohort import Cohort
from cadp_fl.privacy.losses import Relation
from cadp_fl.privacy.mechanisms import PrivUnitMechanism
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.shuffling import ShuffledProfile, half_spaces, responses

__all__ = [
    "DIMS",
    "SHUFFLED",
    "SHUFFLED_CLASSES",
    "UNITS",
    "Crowd",
    "Guesses",
    "Messages",
    "Release",
    "density",
    "guesses_by_a_place",
    "guesses_by_all",
    "log_ratios",
    "place_releases_for",
    "profile_of",
    "release_by_probe",
    "releases_for",
    "shuffled_mechanism",
    "worst_pair",
]

SHUFFLED = "privunit-shuffled"
"""What a shuffled release is called among all that is audited."""

UNITS, SHUFFLED_CLASSES, DIMS = 200, 10, 2
"""n, K and k of the release under attack; more dimensions would only add what tells nothing."""

_LABEL_SHARE = 0.2
"""Of a message's epsilon; the share that what is said below was worked out with."""

_AT_ONCE = 256
"""Releases that are drawn together."""

_DRAWS_PER_RELEASE = 2150
_MOST_DIVISOR, _PLACE_DIVISOR = 20, 5000
"""Of an audit's draws, at most one in so many is a release; and one by whose order is guessed: 200 of a million are
enough to tell a message alone from one among n."""

_PILOT_DIVISOR = 3


@dataclass(frozen=True, eq=False)
class Crowd:
    """What the units of one release hold; the first is the one that is attacked, and all others are alike.

    Attributes:
        signs: of their latents, each -1, 0 or 1; int64 (units, dims).
        labels: int64 (units,).
    """

    signs: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Messages:
    """What an attacker sees of some releases.

    Attributes:
        latents: float64 (releases, units, dims), in the order of each release.
        labels: int64 (releases, units).
    """

    latents: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, released: Released, releases: int, units: int) -> "Messages | None":
        """Return the messages of releases behind each other; None where they are not as many as there are units."""
        if len(released.labels) != releases * units:
            return None
        return cls(released.noised.reshape(releases, units, -1), released.labels.reshape(releases, units))

    @classmethod
    def together(cls, parts: Iterable["Messages | None"]) -> "Messages | None":
        """Return the messages of all parts behind each other; None where one has none."""
        whole: list[Messages] = []
        for each in parts:
            if each is None:
                return None
            whole.append(each)
        return cls(np.concatenate([each.latents for each in whole]), np.concatenate([each.labels for each in whole]))


Release = Callable[[np.ndarray, NoiseSource], Messages | None]
"""(whether each of some releases holds x', bool (releases,); noise) to the messages of each."""


@dataclass(frozen=True, eq=False)
class Guesses:
    """What an attacker guessed, by whether it was so.

    Attributes:
        attack: its name.
        of_right: guesses where the unit held x', bool (releases,): whether the guess was x'.
        of_left: likewise where it held x.
    """

    attack: str
    of_right: np.ndarray
    of_left: np.ndarray

    @classmethod
    def of(cls, attack: str, is_right: np.ndarray, guessed: np.ndarray) -> "Guesses":
        """Return the guesses of both, bool (releases,)."""
        return cls(attack, guessed[is_right], guessed[~is_right])

    @property
    def correct(self) -> int:
        """Number of right guesses."""
        return int(self.of_right.sum() + (~self.of_left).sum())


def shuffled_mechanism(epsilon: float, delta: float) -> PrivUnitMechanism:
    """Return the mechanism of a release that covers labels and hides a unit among `UNITS`.

    Raises:
        BudgetError: none meets the budget.
    """
    return PrivUnitMechanism.calibrated(1.0, epsilon, delta, cohort=Cohort(UNITS, SHUFFLED_CLASSES, _LABEL_SHARE))


def profile_of(mechanism: PrivUnitMechanism) -> ShuffledProfile:
    """Return the losses of a mechanism's shuffled release, which its claim is computed from."""
    loss = mechanism.event().loss(Relation.REPLACE_ONE)
    assert isinstance(loss, ShuffledProfile)
    return loss


def worst_pair(units: int = UNITS, dims: int = DIMS) -> tuple[Crowd, Crowd]:
    """Return two data sets that differ in the first unit: latents -e_1 and e_1, classes 0 and 1; others e_2 and 2."""
    signs = np.zeros((units, dims), dtype=np.int64)
    labels = np.full(units, 2, dtype=np.int64)
    signs[1:, 1] = 1
    left, right = (Crowd(signs.copy(), labels.copy()) for _ in range(2))
    left.signs[0, 0], left.labels[0] = -1, 0
    right.signs[0, 0], right.labels[0] = 1, 1
    return left, right


def releases_for(mechanism: PrivUnitMechanism, draws: int) -> int:
    """Return in how many releases of an audit of so many draws all messages are weighed.

    Their number falls with the square of the largest TPR - FPR that is claimed: the error is a fixed part of that.
    """
    return min(draws // _MOST_DIVISOR, math.ceil(draws / _DRAWS_PER_RELEASE / profile_of(mechanism).delta(0.0) ** 2))


def place_releases_for(draws: int) -> int:
    """Return by the order of how many releases an audit of so many draws guesses."""
    return max(8, draws // _PLACE_DIVISOR)


def release_by_probe(mechanism: PrivUnitMechanism, pair: tuple[Crowd, Crowd], *, apart: bool = False) -> Release:
    """Return how to release data sets of a pair through `privatize`.

    Args:
        mechanism: of the releases.
        pair: of data sets.
        apart: whether each release is a call of its own, which draws the order itself; else many are drawn together.
    """
    units, dims = pair[0].signs.shape
    probe = Probe(mechanism, dims, 0, clip_norm=1.0, classes=SHUFFLED_CLASSES)
    levels, labels = np.stack([spelled(each.signs) for each in pair]), np.stack([each.labels for each in pair])

    def release(is_right: np.ndarray, noise: NoiseSource) -> Messages | None:
        size = 1 if apart else _AT_ONCE

        def drawn(start: int) -> Messages | None:
            side = is_right[start : start + size].astype(np.int64)
            released = probe.release(
                levels[side].reshape(-1, dims),
                labels=labels[side].reshape(-1),
                noise=noise.child(start),
                crowds=len(side),
            )
            return Messages.of(released, len(side), units)

        return Messages.together(drawn(start) for start in range(0, len(is_right), size))

    return release


def density(mechanism: PrivUnitMechanism, messages: Messages, signs: np.ndarray, label: int) -> np.ndarray:
    """Return the density of a unit's messages over the blanket, float64 (releases, units).

    Args:
        signs: of the unit's latents, (dims,).
        label: of the unit.
    """
    latent = half_spaces(mechanism.threshold, mechanism.latent_epsilon, Relation.REPLACE_ONE)
    answer = responses(mechanism.label_epsilon, mechanism.classes, Relation.REPLACE_ONE)
    on_side = messages.latents @ (signs / np.linalg.norm(signs)) >= mechanism.threshold
    weights: np.ndarray = np.where(on_side, latent.ours[0], latent.gamma) * np.where(
        messages.labels == label, answer.ours[0], answer.gamma
    )
    return weights


def log_ratios(
    mechanism: PrivUnitMechanism, messages: Messages, pair: tuple[Crowd, Crowd]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the log-likelihood ratios of whole releases, (releases,), and of each place by itself, (releases, units).

    The second would hold if the attacked unit were there, whatever is elsewhere.
    """
    others = density(mechanism, messages, pair[0].signs[1], int(pair[0].labels[1]))
    left, right = (density(mechanism, messages, each.signs[0], int(each.labels[0])) / others for each in pair)
    return np.log(right.sum(axis=1)) - np.log(left.sum(axis=1)), np.log(right) - np.log(left)


def guesses_by_all(
    mechanism: PrivUnitMechanism, release: Release, pair: tuple[Crowd, Crowd], releases: int, noise: NoiseSource
) -> Guesses:
    """Return guesses by the likelihood ratio of whole releases; none where messages are missing."""
    hits, misses = [np.zeros(0, dtype=bool)], [np.zeros(0, dtype=bool)]
    for start in range(0, releases, _AT_ONCE):
        own = noise.child(start)
        is_right = _coins(min(_AT_ONCE, releases - start), own)
        messages = release(is_right, own.child("releases"))
        if messages is not None:
            guesses = Guesses.of("", is_right, log_ratios(mechanism, messages, pair)[0] > 0)
            hits.append(guesses.of_right)
            misses.append(guesses.of_left)
    return Guesses("whole-release", np.concatenate(hits), np.concatenate(misses))


def guesses_by_a_place(
    mechanism: PrivUnitMechanism, release: Release, pair: tuple[Crowd, Crowd], releases: int, noise: NoiseSource
) -> Guesses:
    """Return guesses by the message in the place that told most in pilot releases; none where messages are missing."""
    name, none = "one-place", np.zeros(0, dtype=bool)
    pilot = _coins(math.ceil(releases / _PILOT_DIVISOR), noise.child("pilot"))
    messages = release(pilot, noise.child("pilot releases"))
    is_right = _coins(releases, noise.child("coins"))
    counted = None if messages is None else release(is_right, noise.child("releases"))
    if messages is None or counted is None:
        return Guesses(name, none, none)
    signs = np.sign(log_ratios(mechanism, messages, pair)[1])
    place = int((signs * np.where(pilot, 1, -1)[:, None]).sum(axis=0).argmax())
    return Guesses.of(name, is_right, log_ratios(mechanism, counted, pair)[1][:, place] > 0)


def _coins(count: int, noise: NoiseSource) -> np.ndarray:
    """Return fair coins, bool (count,)."""
    coins: np.ndarray = noise.child("coins").uniform(count) < 0.5
    return coins
