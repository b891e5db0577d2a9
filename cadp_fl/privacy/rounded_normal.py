"""round(N(0, std^2)), exactly: P(k) = Phi((k + 1/2) / std) - Phi((k - 1/2) / std) for every integer k.

A magnitude's probability T of a larger one is uniform in (0, 1), so the integer is round(x(T)) with
x(T) = -std Phi^-1(T / 2). Of T only some leading bits are drawn, which leave an interval of it. Where float64, whose
error is bounded here, puts all of that interval between the same two half-integers, the integer is certain. Elsewhere
(once in two million times at a deviation of 2^13) the interval's ends are compared with the half-integers' own
probabilities, erfc((k + 1/2) / (std sqrt 2)), at a precision beyond its bits; where it straddles one, further bits are
drawn. So no rounding error has a part in the law: only the bits have.

References:
    Mironov: On significance of the least significant bits for differential privacy, CCS 2012.
    Haney, Desfontaines, Hartman, Shrestha, Hay: Precision-based attacks and interval refining: how to break, then fix,
    differential privacy on finite computers, arXiv 2207.13793.
"""

import math
from collections.abc import Callable

import mpmath
import torch
from scipy.special import ndtri_exp

__all__ = ["MAX_STD", "QUANTILE_ERROR", "REACH", "TAIL_BITS", "nearest_integers", "refined_integer"]

TAIL_BITS = 63
"""Bits of a tail probability that are drawn at first."""

FURTHER_BITS = 64
"""Bits that each refinement draws."""

REACH = 5.2
"""Standard deviations up to which float64 may decide: there T > 2^-23, so that 63 bits give it to a part in 2^40."""

QUANTILE_ERROR = 2.0**-36
"""Bound on the error of Phi^-1(T / 2) in float64 within `REACH`, of whatever T in a word's interval.

An interval's half width moves it by at most sqrt(pi / 2) 2^-41 < 2^-40, since dx / d ln T is a Mills ratio, of at most
sqrt(pi / 2). That leaves 2^-36 - 2^-40 > 1e-11 for the function itself, whose error is below 1e-14."""

MAX_STD = 2.0**30
"""A larger deviation would leave float64 too little to decide."""

_GUARD_BITS, _SLACK_BITS = 64, 32
"""Precision beyond the bits of T, and how much of it a comparison trusts: mpmath errs by some of the last bits, and the
rounding of an argument x counts 2 x^2 times, 2^11 for 1000 bits of T."""


def nearest_integers(tails: torch.Tensor, std: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the integers round(x(T)), and where they are not certain.

    Args:
        tails: float64, (count,): (m + 1/2) / 2^63 of a word m, with the sign of the noise.
        std: from 0 to `MAX_STD`.

    Returns:
        int64 (count,), and the indices, int64, of those to decide by `refined_integer`.

    Raises:
        ValueError: the standard deviation is out of range.
    """
    if not 0 <= std <= MAX_STD:
        raise ValueError(f"A standard deviation on the integers is from 0 to 2^30. Found {std}; choose a coarser grid.")
    values = torch.special.ndtri(tails.abs().div_(2)).copysign_(tails).mul_(std)
    integers = values.round()
    doubtful = values.sub(integers).abs_() > 0.5 - std * QUANTILE_ERROR
    doubtful |= values.abs_() > REACH * std
    return integers.long(), doubtful.nonzero()[:, 0]


def refined_integer(tail: int, std: float, further: Callable[[], int]) -> int:
    """Return round(x(T)) for T uniform in [m, m + 1] / 2^63, with as many further bits as that takes.

    There is no last bit, so it reaches as far as the normal distribution does: a tail whose words are all zero is
    refined like any other that is not yet decided. 63 bits nearly always suffice (all but once in 2^46 times at a
    deviation of 2^13), and it ends with probability one.

    Args:
        tail: m, the first 63 bits of T.
        std: above 0, at most `MAX_STD`.
        further: returns 64 fresh uniform bits.
    """
    context, bits = mpmath.MPContext(), TAIL_BITS  # mpmath's own is shared by all threads, and so is its precision
    while (decided := _integer_of(tail, bits, std, context)) is None:
        tail, bits = tail << FURTHER_BITS | further(), bits + FURTHER_BITS
    return decided


def _integer_of(tail: int, bits: int, std: float, context: mpmath.MPContext) -> int | None:
    """Return the k with k - 1/2 < x(T) < k + 1/2 for every T in [m, m + 1] / 2^bits, or None if there is none."""
    log_half = math.log(2 * tail + 1) - (bits + 2) * math.log(2)
    guess = round(-std * float(ndtri_exp(log_half)))
    context.prec = bits + _GUARD_BITS
    lower, upper = context.ldexp(tail, -bits), context.ldexp(tail + 1, -bits)
    slack = context.ldexp(1, -(bits + _SLACK_BITS))
    scale = context.mpf(std) * context.sqrt(2)
    for k in range(max(guess - 1, 0), guess + 2):
        below_next = lower > context.erfc((k + 0.5) / scale) * (1 + slack)
        if below_next and (k == 0 or upper < context.erfc((k - 0.5) / scale) * (1 - slack)):
            return k
    return None
