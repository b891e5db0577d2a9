"""Exactly rounded normal noise. Statistical tests use fixed keys; each would fail by chance below 1e-4."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest, norm

from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.rounded_normal import (
    MAX_STD,
    QUANTILE_ERROR,
    REACH,
    TAIL_BITS,
    nearest_integers,
    refined_integer,
)

FALSE_ALARM = 1e-4
LIKE = torch.zeros(1)
STDS = (0.3, 1.0, 5.0, 4096.3, 8191.9)


def exact_quantile(tail):
    """Return x with P(|N(0, 1)| > x) = T, for an mpf T, to 120 digits."""
    with mpmath.workdps(120):
        return mpmath.sqrt(2) * mpmath.erfinv(1 - tail)


def oracle(words, std):
    """Return round(std x(T)) for the middle of what 63 bits, and 64 of each further word, leave of T."""
    tail, bits = words[0], TAIL_BITS
    for word in words[1:]:
        tail, bits = (tail << 64) + word, bits + 64
    with mpmath.workdps(120):
        return int(mpmath.floor(std * exact_quantile((tail + mpmath.mpf(0.5)) / mpmath.mpf(2) ** bits) + 0.5))


def boundary_words(k, std, further=1):
    """Return the words of the T at which x(T) = k + 1/2, the last rounded down: [m, w1, ...]."""
    with mpmath.workdps(120):
        tail = mpmath.erfc((k + mpmath.mpf(0.5)) / (std * mpmath.sqrt(2)))
        whole = int(mpmath.floor(tail * mpmath.mpf(2) ** (TAIL_BITS + 64 * further)))
    words = [(whole >> (64 * place)) & (2**64 - 1) for place in range(further)]
    return [whole >> (64 * further), *reversed(words)]


def drawn_from(words, std, sign=1):
    """Return what a source gives that holds these words alone: the first with its sign, then further ones."""
    source, left = NoiseSource.from_seed(1), iter([words[0] << 1 | (sign > 0), *words[1:]])
    source.words = lambda count: np.array(list(itertools.islice(left, count)), dtype=np.uint64)
    value = source.rounded_normal((1,), std, like=LIKE).item()
    return value, list(left)


@pytest.mark.parametrize("std", [0.3, 1.0, 5.0])
def test_every_integer_has_the_probability_of_its_unit_interval(std):
    drawn = NoiseSource.from_seed(11).rounded_normal((1_000_000,), std, like=LIKE).numpy()
    reach = next(k for k in range(1, 1000) if norm.sf((k + 0.5) / std) * 1_000_000 < 10)
    inner = np.arange(-reach + 1, reach)
    low, high = (np.abs(inner) - 0.5) / std, (np.abs(inner) + 0.5) / std
    expected = np.r_[norm.sf((reach - 0.5) / std), norm.sf(low) - norm.sf(high), norm.sf((reach - 0.5) / std)]
    found = np.bincount(np.clip(drawn, -reach, reach) + reach, minlength=2 * reach + 1)
    assert chisquare(found, expected * len(drawn)).pvalue > FALSE_ALARM


def test_on_a_fine_grid_the_noise_is_normal_and_its_low_bits_are_uniform():
    std, count = 4096.3, 1_000_000
    drawn = NoiseSource.from_seed(12).rounded_normal((count,), std, like=LIKE).numpy()
    assert kstest(drawn / std, "norm").pvalue > FALSE_ALARM
    assert abs(drawn.mean()) < 4 * std / math.sqrt(count)
    assert drawn.var() == pytest.approx(std**2 + 1 / 12, rel=4 * math.sqrt(2 / count))
    assert (drawn / std).__pow__(4).mean() == pytest.approx(3, abs=4 * math.sqrt(96 / count))
    assert chisquare(np.bincount(drawn % 16, minlength=16)).pvalue > FALSE_ALARM
    assert (np.abs(drawn) > 4 * std).sum() == pytest.approx(count * 2 * norm.sf(4), abs=4 * math.sqrt(63))


def test_within_reach_the_quantile_errs_by_far_less_than_its_bound():
    """Against both ends of a word's interval at 120 digits: near the median, in between, and at the reach."""
    generator = np.random.default_rng(0)
    words = [2**40, 2**40 + 1, 2**TAIL_BITS - 1, 2**TAIL_BITS - 2**11, 2**62]
    words += [int(2.0**TAIL_BITS * math.exp(power)) for power in generator.uniform(-15.9, 0, 300)]
    words += [2**TAIL_BITS - int(2.0 ** generator.uniform(0, 60)) - 1 for _ in range(100)]
    tails = torch.from_numpy((np.array(words, dtype=np.uint64).astype(np.float64) + 0.5) * 2.0**-TAIL_BITS)
    quantiles = -torch.special.ndtri(tails / 2)
    own, whole = [], []
    for word, tail, quantile in zip(words, tails.tolist(), quantiles.tolist(), strict=True):
        own.append(abs(exact_quantile(mpmath.mpf(tail)) - quantile))
        ends = (mpmath.mpf(end) / 2**TAIL_BITS for end in (word, word + 1))
        whole += [abs(exact_quantile(end) - quantile) for end in ends]
    assert max(own) < 1e-14
    assert max(whole) < QUANTILE_ERROR / 10
    assert 2 * norm.sf(REACH) > 2.0**-23


@pytest.mark.parametrize("std", STDS)
def test_float64_decides_as_120_digits_do_also_where_it_is_only_just_certain(std):
    """Words whose x(T) is as close to a half-integer as float64 may still decide, and random ones."""
    distance, words = std * QUANTILE_ERROR * 1.5, []
    for k in {0, 1, int(std), int(3 * std), int(5 * std)}:
        for side in (-1, 1):
            x = (k + 0.5 + side * distance) / std
            with mpmath.workdps(60):
                words.append(int(mpmath.erfc(x / mpmath.sqrt(2)) * 2**TAIL_BITS))
    words += [int(word) >> 1 for word in np.random.default_rng(1).integers(0, 2**64, 100, dtype=np.uint64)]
    tails = torch.from_numpy((np.array(words, dtype=np.uint64).astype(np.float64) + 0.5) * 2.0**-TAIL_BITS)
    integers, doubtful = nearest_integers(tails, std)
    certain = sorted(set(range(len(words))) - set(doubtful.tolist()))
    assert len(certain) > 0.9 * len(words)
    for index in certain:
        assert integers[index].item() == oracle([words[index]], std)


def test_less_than_one_word_in_a_million_is_left_to_the_slow_path():
    """At 8191.9 steps some 0.44 in a million are expected; 12 of four million would come once in 10^6 keys."""
    words = NoiseSource.from_seed(15).words(4_000_000) >> np.uint64(1)
    tails = torch.from_numpy((words.astype(np.float64) + 0.5) * 2.0**-TAIL_BITS)
    assert len(nearest_integers(tails, 8191.9)[1]) < 12


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("std", STDS)
def test_words_beside_a_boundary_are_decided_as_120_digits_do_and_draw_no_more(std, sign):
    for k in (0, 1, int(std), int(4 * std), int(6 * std)):
        straddling, _ = boundary_words(k, std)
        for step in (-2, -1, 1, 2):
            value, left = drawn_from([straddling + step, 7], std, sign)
            assert value == sign * oracle([straddling + step], std) == sign * (k if step > 0 else k + 1)
            assert left == [7]
        for step in (-(2**30), 2**30):
            value, _ = drawn_from([abs(straddling + step), 7], std, sign)
            assert value == sign * oracle([abs(straddling + step)], std)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("std", STDS)
def test_a_word_that_straddles_a_boundary_is_decided_by_the_bits_behind_it(std, sign):
    for k in (0, 1, int(std), int(4 * std), int(7 * std)):
        for further in (1, 2):
            *shared, last = boundary_words(k, std, further)
            for word in (last - 1, last + 1, last // 2, (last + 2**64) // 2):
                value, left = drawn_from([*shared, word], std, sign)
                assert value == sign * oracle([*shared, word], std) == sign * (k if word > last else k + 1)
                assert left == []


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("zeros", [1, 2, 3, 20])
def test_a_tail_of_zeros_reaches_further_with_every_word(std, zeros):
    words = [0] * zeros + [2**63 + 12345, 2**63 + 54321]
    value, _ = drawn_from(words, std)
    with mpmath.workdps(600):
        tail = (words[-2] * 2**64 + words[-1]) / mpmath.mpf(2) ** (TAIL_BITS + 64 * (zeros + 1))
        assert mpmath.erfc((value + 0.5) / (std * mpmath.sqrt(2))) < tail
        assert mpmath.erfc((value - 0.5) / (std * mpmath.sqrt(2))) > tail
    assert value / std > {1: 8.5, 2: 12.5, 3: 15.5, 20: 40.0}[zeros]


@pytest.mark.parametrize("std", [1.0, MAX_STD])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_innermost_word_is_zero_or_beside_it(std, sign):
    value, _ = drawn_from([2**TAIL_BITS - 1], std, sign)
    assert value == 0


def test_refinement_alone_has_the_same_law():
    """The exact path decides every word here, as it would if float64 decided none."""
    source, std, count = NoiseSource.from_seed(13), 1.3, 3000
    words = [int(word) >> 1 for word in source.words(count)]
    found = np.bincount([min(refined_integer(word, std, lambda: 0), 4) for word in words], minlength=5)
    beyond = 2 * norm.sf((np.arange(5) - 0.5) / std)
    beyond[0] = 1
    assert chisquare(found, count * (beyond - np.r_[beyond[1:], 0])).pvalue > FALSE_ALARM


def test_a_precision_set_elsewhere_in_the_process_decides_nothing():
    straddling, _ = boundary_words(4096, 4096.3)
    with mpmath.workprec(10):
        decided = [refined_integer(straddling + step, 4096.3, lambda: 0) for step in (-1, 1)]
        assert mpmath.mp.prec == 10
    assert decided == [4097, 4096]


def test_the_sign_is_fair_and_independent():
    drawn = NoiseSource.from_seed(14).rounded_normal((400_000,), 50.0, like=LIKE).numpy()
    other = NoiseSource.from_seed(14).child("other").rounded_normal((400_000,), 50.0, like=LIKE).numpy()
    assert abs((drawn > 0).sum() - (drawn < 0).sum()) < 4 * math.sqrt(400_000)
    assert abs(np.corrcoef(drawn, other)[0, 1]) < 4 / math.sqrt(400_000)
    assert abs(np.corrcoef(np.sign(drawn), np.abs(drawn))[0, 1]) < 4 / math.sqrt(400_000)


def test_a_seed_repeats_and_a_child_does_not():
    first, second = (NoiseSource.from_seed(3).rounded_normal((5, 7), 100.0, like=LIKE) for _ in range(2))
    child = NoiseSource.from_seed(3).child("x").rounded_normal((5, 7), 100.0, like=LIKE)
    assert torch.equal(first, second)
    assert not torch.equal(first, child)
    assert (first.dtype, tuple(first.shape)) == (torch.int64, (5, 7))
    assert NoiseSource.from_seed(3).rounded_normal((2, 0), 1.0, like=LIKE).shape == (2, 0)


def test_rounded_noise_is_the_ordinary_noise_of_the_same_stream_rounded():
    """Wherever that is not beside a half-integer, so that the two differ in exactness and in nothing else."""
    rounded = NoiseSource.from_seed(4).rounded_normal((100_000,), 300.0, like=LIKE)
    ordinary = NoiseSource.from_seed(4).normal((100_000,), 300.0, like=LIKE.double())
    assert torch.equal(rounded, ordinary.round().long())


def test_without_noise_all_is_zero():
    assert not NoiseSource.from_seed(5).rounded_normal((100,), 0.0, like=LIKE).any()


@pytest.mark.parametrize("std", [-1.0, math.nan, math.inf, 2 * MAX_STD])
def test_a_deviation_out_of_range_is_refused(std):
    with pytest.raises(ValueError, match=r"from 0 to 2\^30"):
        NoiseSource.from_seed(5).rounded_normal((1,), std, like=LIKE)
