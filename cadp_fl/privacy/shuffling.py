"""What a shuffled release costs: amplification by the privacy blanket.

Every unit sends one message through the same local randomizer R, and the messages of n units leave in a secret uniform
order. Each R(x) is a mixture: with probability gamma a draw from one distribution that no record has a part in, the
blanket, and else something of its own. Messages of the blanket's hide those of a unit, so that replacing it costs

    delta(eps) <= 1 / (gamma n) E[(l_1 + ... + l_M)_+],   M ~ Bin(n, gamma),   l = w(V) - e^eps w'(V),   V ~ blanket

with w and w' the densities of R(x) and R(x') over the blanket. More units never cost more: the others' messages can be
added, and the order drawn again, by anyone.

Here R draws m latents by PrivUnit, and a label for each by randomized response. The blanket is the flow's prior with a
uniform label. Two records cost most where their half-spaces are disjoint and their labels differ: of any other pair, l
has the same mean and is less spread out, in each factor whatever the others are, and E(.)_+ grows with spread. A record
without a direction, which draws from the prior itself, is such a case: 1 is the mean of w for a direction at right
angles.

References:
    Balle, Bell, Gascón, Nissim: The privacy blanket of the shuffle model, arXiv 1903.02837, lemma 5.3.
    Su, Cheng, Wang: decompositions of the blanket and their optimality, arXiv 2504.07414.
    Doroshenko et al.: Connect the dots, arXiv 2207.04380 (how a profile is composed with other events).
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from cadp_fl.privacy.losses import Profile, Relation

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

__all__ = [
    "Densities",
    "ShuffledProfile",
    "best_threshold",
    "half_spaces",
    "gain_of",
    "joined",
    "mass_beyond",
    "responses",
    "shuffled_delta",
]

_POINTS = 1 << 14
_TAIL_LOG = 48.0
"""-log of the probability that a sum leaves the window of its grid on one side."""

_ROUNDING = 2.0**-50
"""Of one value of a transform, relative to 1: some rounding errors of float64."""

_NODES, _COARSE_NODES, _COARSE_GRID = 96, 48, 1e-3
"""Epsilons at which a profile is worked out; fewer on the coarse grid of a search. Chords between them stay bounds."""

_LEAST_DELTA = 1e-13
"""Of a profile: where it is lower, it is taken to be as high as here up to the local epsilon, where it is 0."""


@dataclass(frozen=True)
class Densities:
    """The densities of a pair of randomizers' messages over the blanket, and how likely each pair of values is.

    Attributes:
        ours, theirs: w and w', float64 (values,).
        probability: of each under the blanket, float64 (values,).
        gamma: the share of the blanket in every message.
    """

    ours: np.ndarray
    theirs: np.ndarray
    probability: np.ndarray
    gamma: float

    def swapped(self) -> "Densities":
        """Return the pair the other way round."""
        return Densities(self.theirs, self.ours, self.probability, self.gamma)


def mass_beyond(threshold: float) -> float:
    """Return q = P(N(0, 1) >= g), the prior's mass in a half-space."""
    return math.erfc(threshold / math.sqrt(2)) / 2


def half_spaces(threshold: float, epsilon: float, relation: Relation) -> Densities:
    """Return the densities of two latents by PrivUnit whose half-spaces <v, u> >= g are disjoint.

    Args:
        threshold: g, at least 0; under the prior a half-space has the mass q = P(N(0, 1) >= g).
        epsilon: log(H / L), of the density H on a record's half-space and L off it.
        relation: under add-or-remove, a removed record leaves a draw from the prior.
    """
    q = mass_beyond(threshold)
    low = 1 / (1 + q * math.expm1(epsilon))
    high = low * math.exp(epsilon)
    if relation is Relation.REPLACE_ONE:
        values = [(high, low, q), (low, high, q), (low, low, 1 - 2 * q)]
    else:
        values = [(high, 1.0, q), (low, 1.0, 1 - q)]
    ours, theirs, probability = np.array(values).T
    return Densities(ours, theirs, probability, low)


def responses(epsilon: float, classes: int, relation: Relation) -> Densities:
    """Return the densities of randomized response for two different labels; under add-or-remove, for one and none."""
    share = classes / (math.exp(epsilon) + classes - 1)
    true = share * math.exp(epsilon)
    if relation is Relation.REPLACE_ONE:
        values = [(true, share, 1 / classes), (share, true, 1 / classes), (share, share, 1 - 2 / classes)]
    else:
        values = [(true, 1.0, 1 / classes), (share, 1.0, 1 - 1 / classes)]
    ours, theirs, probability = np.array(values).T
    return Densities(ours, theirs, probability, share)


def joined(first: Densities, second: Densities) -> Densities:
    """Return the densities of two independent parts of one message; values that are alike become one."""
    ours, theirs, probability = (
        np.multiply.outer(getattr(first, name), getattr(second, name)).ravel()
        for name in ("ours", "theirs", "probability")
    )
    exact = np.round(np.log(np.stack([ours, theirs], axis=1)), 9)
    _, one, which = np.unique(exact, axis=0, return_index=True, return_inverse=True)
    mass = np.bincount(which.ravel(), weights=probability)
    kept = mass > 0
    return Densities(ours[one][kept], theirs[one][kept], mass[kept], first.gamma * second.gamma)


def shuffled_delta(pair: Densities, units: int, epsilons: np.ndarray) -> np.ndarray:
    """Return the blanket bound of delta for every epsilon >= 0, float64 (epsilons,): never below the exact sum.

    The sum's law is worked out on a grid. Each value is shared out between its two neighbours there so that its mean
    stays: that spreads it, and spread only adds to E(.)_+. What the window cuts off, and rounding, is added.

    Args:
        pair: densities.
        units: n.
        epsilons: float64 (epsilons,).
    """
    value = pair.ours - np.exp(epsilons)[:, None] * pair.theirs
    mass, gamma = pair.probability, pair.gamma
    mean, largest = gamma * (value * mass).sum(axis=1), np.abs(value).max(axis=1)
    reach = _reach(value, mass, gamma, units) + 2 * largest
    step = 2 * np.maximum(reach, 1e-300) / _POINTS
    place = value / step[:, None]
    below = np.floor(place)
    upper = place - below
    one = np.zeros((len(epsilons), _POINTS))
    row = np.broadcast_to(np.arange(len(epsilons))[:, None], place.shape)
    for offset, share in ((0, 1 - upper), (1, upper)):
        np.add.at(one, (row, (below.astype(np.int64) + offset) % _POINTS), gamma * mass * share)
    one[:, 0] += 1 - gamma
    law = np.fft.irfft(_power(np.fft.rfft(one, axis=1), units), _POINTS, axis=1)
    centre = np.round(units * mean / step).astype(np.int64)[:, None]
    total = (np.arange(_POINTS) - centre + _POINTS // 2) % _POINTS - _POINTS // 2 + centre
    positive = np.maximum(total * step[:, None], 0)
    expected = (positive * np.maximum(law, 0)).sum(axis=1)
    beyond = 2 * units * largest * math.exp(-_TAIL_LOG) + units * _ROUNDING * (np.abs(units * mean) + reach)
    bound: np.ndarray = np.minimum((expected + beyond) / (gamma * units), 1.0)
    return bound


def _power(values: np.ndarray, exponent: int) -> np.ndarray:
    """Return values ** exponent by squaring, which takes a quarter of the time of numpy's own."""
    power = np.ones_like(values)
    while exponent:
        if exponent % 2:
            power *= values
        exponent //= 2
        if exponent:
            values = values * values
    return power


def _reach(value: np.ndarray, mass: np.ndarray, gamma: float, units: int) -> np.ndarray:
    """Return how far each sum may be from its mean, but for a probability of 2 e^-48 (Chernoff), float64 (epsilons,).

    P(S - E S >= T) <= exp(n log E e^(s l) - s (T + E S)) for every s > 0, and likewise on the other side.
    """
    largest = np.maximum(np.abs(value).max(axis=1), 1e-300)[:, None]
    mean = gamma * (value * mass).sum(axis=1)[:, None]
    reach = np.zeros(len(value))
    for sign in (1, -1):
        best = np.full(len(value), np.inf)
        for power in np.arange(-40, 9) / 2.0:
            slope = sign * 2.0**power / largest
            log_mean = np.log1p(gamma * (mass * np.expm1(slope * value)).sum(axis=1))[:, None]
            best = np.minimum(best, ((_TAIL_LOG + units * (log_mean - slope * mean)) / np.abs(slope))[:, 0])
        reach = np.maximum(reach, best)
    within: np.ndarray = np.minimum(reach, 2 * units * largest[:, 0])
    return within


@dataclass(frozen=True)
class ShuffledProfile(Profile):
    """The privacy loss of a shuffled release, as its deltas dominate it.

    Attributes:
        latent_epsilon: of each latent by itself.
        threshold: g of PrivUnit.
        label_epsilon: of each label by itself; 0 where labels are public, and a unit hides in its own class.
        classes: K, where labels are covered.
        units: n, that are shuffled together at least.
        records_per_unit: m.
        relation: what two neighbouring data sets may differ in.
    """

    latent_epsilon: float
    threshold: float
    label_epsilon: float
    classes: int
    units: int
    records_per_unit: int
    relation: Relation

    @property
    def local_epsilon(self) -> float:
        """Epsilon of a unit's message by itself: m times that of a latent and of its label."""
        return self.records_per_unit * (self.latent_epsilon + self.label_epsilon)

    @property
    def mean(self) -> float:
        """About half of the square of how far losses spread; at most the local epsilon, which is no load."""
        return self.local_epsilon / 2

    @property
    def reach(self) -> float:
        """The local epsilon: no loss is larger."""
        return self.local_epsilon

    def delta(self, epsilon: float) -> float:
        """Return the least delta that is shown here for an epsilon >= 0, the larger one of both directions."""
        if epsilon >= self.local_epsilon:
            return 0.0
        return max(float(shuffled_delta(pair, self.units, np.array([epsilon]))[0]) for pair in self.directions)

    def epsilon(self, delta: float) -> float:
        """Return the epsilon at `delta` of the release by itself, up to 1e-6 above where the bound meets it."""
        lower, upper = 0.0, self.local_epsilon
        if self.delta(lower) <= delta:
            return lower
        while upper - lower > 1e-6:
            middle = (lower + upper) / 2
            lower, upper = (lower, middle) if self.delta(middle) <= delta else (middle, upper)
        return upper

    def distribution(self, grid: float) -> Any:
        """Return the distribution whose deltas are the bound at some epsilons of the grid, and its chords between."""
        return _distribution(self, grid)

    @property
    def directions(self) -> tuple[Densities, ...]:
        """The pair, and the other way round where that differs: an epsilon bounds both."""
        pair = self._pair
        return (pair,) if self.relation is Relation.REPLACE_ONE else (pair, pair.swapped())

    @cached_property
    def _pair(self) -> Densities:
        one = half_spaces(self.threshold, self.latent_epsilon, self.relation)
        if self.label_epsilon:
            one = joined(one, responses(self.label_epsilon, self.classes, self.relation))
        pair = one
        for _ in range(self.records_per_unit - 1):
            pair = joined(pair, one)
        return pair


def gain_of(threshold: float, epsilon: float) -> float:
    """Return E<v, u> = phi(g) (H - L) of a released latent v and the record's direction u."""
    one = half_spaces(threshold, epsilon, Relation.REPLACE_ONE)
    density = math.exp(-(threshold**2) / 2) / math.sqrt(2 * math.pi)
    return density * float(one.ours[0] - one.gamma)


@lru_cache(maxsize=256)
def best_threshold(epsilon: float) -> float:
    """Return the g from 0 to 8 at which a released latent points most towards its record, to six digits.

    Whatever g is, a latent's own epsilon is the same.
    """
    lower, upper = 0.0, 8.0
    shrink = (math.sqrt(5) - 1) / 2
    while upper - lower > 1e-7:  # golden-section search: the gain has one maximum
        left, right = upper - shrink * (upper - lower), lower + shrink * (upper - lower)
        if gain_of(left, epsilon) < gain_of(right, epsilon):
            lower = left
        else:
            upper = right
    return round((lower + upper) / 2, 6)


@lru_cache(maxsize=64)
def _deltas(profile: ShuffledProfile, nodes: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return epsilons from 0 to the local one, and the deltas there in each direction; close to where delta matters.

    The last is 0: no loss is larger.
    """
    local, units = profile.local_epsilon, profile.units
    coarse = np.linspace(0, local, 33)[:-1]
    delta = np.max([shuffled_delta(pair, units, coarse) for pair in profile.directions], axis=0)
    matters = coarse[: 1 + np.searchsorted(-delta, -max(_LEAST_DELTA, 3 * delta[-1]))]
    epsilons = np.linspace(0, matters[-1], nodes)
    deltas = (np.minimum.accumulate(shuffled_delta(pair, units, epsilons)) for pair in profile.directions)
    return np.append(epsilons, local), tuple(np.append(each, 0.0) for each in deltas)


@lru_cache(maxsize=64)
def _distribution(profile: ShuffledProfile, grid: float) -> "PrivacyLossDistribution":
    """Return the distribution of a profile on a grid.

    delta is convex in e^eps, so chords between points of the bound are bounds. Below 0 a delta follows from that of
    the other direction: delta(-eps) = 1 - e^-eps (1 - delta'(eps)).
    """
    from dp_accounting.pld.pld_pmf import create_pmf_pessimistic_connect_dots
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

    epsilons, deltas = _deltas(profile, _COARSE_NODES if grid >= _COARSE_GRID else _NODES)
    last = math.ceil(epsilons[-1] / grid)
    places = np.arange(-last, last + 1)
    below = -np.expm1(grid * places)  # where no loss is as low, delta is 1 - e^eps
    pmfs = []
    for there, back in zip(deltas, deltas[::-1], strict=True):
        ratio = np.exp([*-epsilons[:0:-1], *epsilons])
        known = np.array([*(1 - np.exp(-epsilons[:0:-1]) * (1 - back[:0:-1])), *there])
        chords = np.interp(np.exp(grid * places), ratio, known)
        pmfs.append(create_pmf_pessimistic_connect_dots(grid, places, np.maximum(chords, below)))
    return PrivacyLossDistribution(*pmfs)
