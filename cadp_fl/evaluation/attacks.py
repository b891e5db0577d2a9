"""Attacks on a mechanism: two batches that differ in one record, and a statistic that tells which one was released.

    s = <W, M(batch)>      or, where noise may repeat,      s = <W, M(batch) - M(left batch)>

Under replace-one, any two records are neighbours, and a flow that a server chose may encode them as any two latents. So
the left and the right record are the latents that end farthest apart after an honest clip: near -C e and C e, whatever
was put in, in the L1 and in the L2 norm. The others aim at what an honest clip or noise source does not do.

References:
    Jagielski, Ullman, Oprea: Auditing differentially private machine learning: how private is private SGD?,
        arXiv 2006.07709.
    Nasr, Hayes, Steinke, Balle, Tramèr, Jagielski, Carlini, Terzis: Tight auditing of differentially private machine
        learning, arXiv 2302.07956.
"""

import math
from dataclasses import dataclass

import torch

from cadp_fl.privacy.mechanisms import Mechanism
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.release.privatize import BATCH_RECORDS

__all__ = ["Attack", "attacks_on", "draw_statistics"]

HUGE = 1e6
"""Length of a latent before the clip, in units of C: the clip has to do its work."""

BYSTANDERS = 64
"""Other people's records in a crowded batch."""

ORTHOGONAL_ROWS = 16
"""Records of a batch that a clip of the batch as a matrix would take together."""

MOST_CALLS = 10_000
"""Draws of an attack on a batch, each with a call of its own."""

NOT_FINITE = 1e300
"""Statistic of an output that is not finite. It counts as the right record's, so that a clip which lets the right one
through as NaN is seen."""


@dataclass(frozen=True)
class Attack:
    """Two batches that differ in one record, and the statistic that is larger where the right one was released.

    Attributes:
        name: of the attack, as reports print it.
        left: latents (records, dims), float32.
        right: the same but for one record, (records, dims).
        weights: W of the statistic, (records, dims).
        twice: whether the left batch is released once more, and its outputs are subtracted.
        crowded: whether many copies of the two batches and `BYSTANDERS` share one batch of `BATCH_RECORDS`, so that one
            call is many draws; otherwise every draw is a call, since the batch itself is under attack.
        draws_divisor: of an audit's draws, this attack takes one in so many, and at most `MOST_CALLS` if each is a
            call, which is slow. A leak through the batch, or through noise that repeats, is gross.
    """

    name: str
    left: torch.Tensor
    right: torch.Tensor
    weights: torch.Tensor
    twice: bool = False
    crowded: bool = True
    draws_divisor: int = 20

    def draws_of(self, draws: int) -> int:
        """Return how many draws it takes of each record, of an audit of so many."""
        own = draws // self.draws_divisor
        return (own if self.crowded else min(own, MOST_CALLS)) // 2


def attacks_on(clip_norm: float, dims: int) -> tuple[Attack, ...]:
    """Return the attacks on a mechanism that clips latents of `dims` dimensions to C.

    The first is the worst pair for an honest mechanism of either norm, a vertex of the L1 ball and its opposite. Then:

    - `not-finite`: a record that overflows, and shows itself if the clip lets it through;
    - `neighbour`: a record next to one that is known: noise shared by a batch falls out of their difference;
    - `second-release`: a record, and a known one released in its place afterwards: noise that repeats falls out;
    - `flat`: a batch of one, +-C (1, ..., 1): 2 C dims apart in L1 where a clip takes the norm of a *matrix* as the
      largest sum of a column;
    - `orthogonal`: orthogonal rows of length C, all at most C in the spectral norm. Where a clip takes that norm of the
      batch, one huge row in the place of the first crushes all others, and the batch moves by C sqrt(records + 3).
    """
    axis = torch.zeros(1, dims)
    axis[0, 0] = 1.0
    right = axis * HUGE * clip_norm
    known = torch.zeros(1, dims)
    flat = torch.ones(1, dims) * HUGE * clip_norm
    rows = torch.eye(dims)[:ORTHOGONAL_ROWS] * clip_norm
    crushing = torch.cat([-right, rows[1:]])
    return (
        Attack("worst-pair", -right, right, axis, draws_divisor=1),
        Attack("not-finite", -right, torch.full((1, dims), math.nan), axis),
        Attack("neighbour", torch.cat([-right, known]), torch.cat([right, known]), torch.cat([axis, -axis])),
        Attack("second-release", -right, right, axis, twice=True),
        Attack("flat", -flat, flat, torch.ones(1, dims), crowded=False, draws_divisor=200),
        Attack("orthogonal", rows, crushing, torch.cat([-2 * axis, -rows[1:]]), crowded=False, draws_divisor=100),
    )


def draw_statistics(
    mechanism: Mechanism, attack: Attack, draws: int, *, noise: NoiseSource
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return at least `draws` statistics of the left batch and as many of the right one, float64.

    Copies in one batch take turns in being left and right, so that each position is both. Memory is that of one batch
    and of the statistics.

    Args:
        mechanism: under attack; it is called as a release calls it.
        noise: for the mechanism, and for the bystanders.
    """
    records, dims = attack.left.shape
    copies = (BATCH_RECORDS - BYSTANDERS) // records // 2 * 2 if attack.crowded else 1
    others = _bystanders(dims, float(attack.left.abs().max()), noise) if attack.crowded else attack.left[:0]
    weights = attack.weights.double().flatten()

    def batch_of(is_right: torch.Tensor) -> torch.Tensor:
        tiles = torch.where(is_right[:, None, None], attack.right, attack.left)
        return torch.cat([tiles.reshape(-1, dims), others])

    def release(batch: torch.Tensor) -> torch.Tensor:
        return mechanism(batch, noise=noise)[: copies * records].double().reshape(copies, -1)

    is_right = torch.arange(copies) % 2 == 1
    turns = [(batch_of(side), (~side).nonzero()[:, 0], side.nonzero()[:, 0]) for side in (is_right, ~is_right)]
    known = batch_of(torch.zeros_like(is_right))
    left, right = [], []
    for _ in range(math.ceil(draws / copies)):
        for batch, are_left, are_right in turns:
            released = release(batch) - release(known) if attack.twice else release(batch)
            statistics = (released @ weights).nan_to_num(nan=NOT_FINITE, posinf=NOT_FINITE, neginf=-NOT_FINITE)
            left.append(statistics[are_left])
            right.append(statistics[are_right])
    return torch.cat(left), torch.cat(right)


def _bystanders(dims: int, length: float, noise: NoiseSource) -> torch.Tensor:
    """Return other latents, (BYSTANDERS, dims): most follow the prior, some are zero, huge or not finite."""
    others = noise.child("bystanders").normal((BYSTANDERS, dims), 1.0, like=torch.zeros(1))
    others[0], others[1], others[2], others[3] = 0.0, length, math.nan, math.inf
    return others
