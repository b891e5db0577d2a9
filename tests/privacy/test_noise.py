"""The entropy source. Statistical tests use fixed keys; each would fail by chance with probability below 1e-4."""

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy.stats import chi2, kstest, laplace, norm

from cadp_fl.errors import PrivacyError
from cadp_fl.privacy.mechanisms import GaussianMechanism, LaplaceMechanism
from cadp_fl.privacy.noise import NoiseSource

FALSE_ALARM = 1e-4


def test_normal_noise_is_normal_in_its_body_and_tails():
    drawn = NoiseSource.from_seed(1).normal((400_000,), 2.0, like=torch.zeros(1, dtype=torch.float64)).numpy()
    assert kstest(drawn / 2.0, "norm").pvalue > FALSE_ALARM
    assert (np.abs(drawn) / 2.0 > 4).sum() == pytest.approx(400_000 * 6.33e-5, abs=20)


def test_laplace_noise_is_laplace_in_its_body_and_tails():
    drawn = NoiseSource.from_seed(1).laplace((400_000,), 2.0, like=torch.zeros(1, dtype=torch.float64)).numpy()
    assert kstest(drawn / 2.0, "laplace").pvalue > FALSE_ALARM
    assert (drawn > 0).sum() == pytest.approx(200_000, abs=4 * 316)
    for magnitude in (5, 8):  # within four standard deviations of a binomial count
        expected = 400_000 * np.exp(-magnitude)
        assert (np.abs(drawn) / 2.0 > magnitude).sum() == pytest.approx(expected, abs=4 * np.sqrt(expected))


def test_the_sign_of_laplace_noise_says_nothing_of_its_magnitude():
    drawn = NoiseSource.from_seed(2).laplace((200_000,), 1.0, like=torch.zeros(1, dtype=torch.float64)).numpy()
    assert abs(np.corrcoef(np.sign(drawn), np.abs(drawn))[0, 1]) < 4 / np.sqrt(200_000)
    assert kstest(np.abs(drawn[drawn > 0]), "expon").pvalue > FALSE_ALARM
    assert kstest(np.abs(drawn[drawn < 0]), "expon").pvalue > FALSE_ALARM


REACH = {"normal": 18.6, "laplace": 177.4}


@pytest.mark.parametrize("kind", list(REACH))
@pytest.mark.parametrize(("first", "sign"), [(0, -1), (1, 1)])
def test_the_outermost_draws_are_finite_and_further_out_than_any_shift(first, sign, kind, monkeypatch):
    source, words = NoiseSource.from_seed(1), iter([first, 0, 0, 0])
    monkeypatch.setattr(source, "words", lambda count: np.full(count, next(words), dtype=np.uint64))
    assert getattr(source, kind)((1,), 1.0, torch.zeros(1)).item() == pytest.approx(sign * REACH[kind], abs=0.1)


@pytest.mark.parametrize("kind", list(REACH))
@pytest.mark.parametrize("word", [2**64 - 1, 2**64 - 2])
def test_the_innermost_draws_are_zero(word, kind, monkeypatch):
    source = NoiseSource.from_seed(1)
    monkeypatch.setattr(source, "words", lambda count: np.full(count, word, dtype=np.uint64))
    assert getattr(source, kind)((1,), 1.0, torch.zeros(1)).item() == 0


def test_further_bits_of_a_small_probability_stand_behind_the_first(monkeypatch):
    source, words = NoiseSource.from_seed(1), iter([[2 * 3 + 1, 2**63], [2**63]])
    monkeypatch.setattr(source, "words", lambda count: np.array(next(words), dtype=np.uint64))
    assert source.signed_tail(2).tolist() == [3.5 * 2.0**-63, -0.5]


@pytest.mark.parametrize("epsilon", [25.0, 100.0])
@pytest.mark.parametrize("kind", [GaussianMechanism, LaplaceMechanism])
def test_noise_reaches_further_than_the_largest_budget_moves_a_record(kind, epsilon):
    """What one record can give and another cannot has a probability of less than a millionth of delta."""
    mechanism, reach = kind.calibrated(1.0, epsilon, 1e-5), REACH[kind.name.replace("gaussian", "normal")]
    tail = norm.sf if kind is GaussianMechanism else laplace.sf
    scale = mechanism.noise_std if kind is GaussianMechanism else mechanism.noise_scale
    assert tail(reach - mechanism.sensitivity / scale) < 1e-5 * 1e-6


def test_uniform_noise_is_uniform_and_open():
    drawn = NoiseSource.from_seed(2).uniform(200_000)
    assert kstest(drawn, "uniform").pvalue > FALSE_ALARM
    assert drawn.min() > 0
    assert drawn.max() < 1


@pytest.mark.parametrize("word", [0, 2**64 - 1])
def test_the_outermost_uniform_draws_are_inside(word, monkeypatch):
    source = NoiseSource.from_seed(1)
    monkeypatch.setattr(source, "words", lambda count: np.full(count, word, dtype=np.uint64))
    assert 0 < source.uniform(1)[0] < 1


def test_the_stream_is_aes_in_counter_mode():
    key = bytes(range(32))
    source = NoiseSource(key, "seeded")
    first, second = source.uniform(5), source.uniform(7)
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(12 * 8))
    expected = (np.frombuffer(stream, "<u8") >> np.uint64(12)) * 2.0**-52 + 2.0**-53
    assert np.array_equal(np.concatenate([first, second]), expected)


def test_a_seed_repeats_and_another_does_not():
    assert np.array_equal(NoiseSource.from_seed(3).uniform(9), NoiseSource.from_seed(3).uniform(9))
    assert not np.array_equal(NoiseSource.from_seed(3).uniform(9), NoiseSource.from_seed(4).uniform(9))
    assert NoiseSource.from_seed(3).kind == "seeded"


def test_entropy_never_repeats():
    assert not np.array_equal(NoiseSource.from_entropy().uniform(9), NoiseSource.from_entropy().uniform(9))
    assert NoiseSource.from_entropy().child("x").kind == "entropy"


def test_children_are_independent_of_each_other_and_of_their_parent():
    root = NoiseSource.from_seed(5)
    streams = [root.child("a"), root.child("b"), root.child("a", 1), root.child("a", "1"), root]
    drawn = np.stack([stream.uniform(50_000) for stream in streams])
    correlation = np.corrcoef(drawn) - np.eye(len(streams))
    assert np.abs(correlation).max() < 4.5 / np.sqrt(50_000)


def test_noise_is_used_once():
    root = NoiseSource.from_seed(6)
    root.child("release", "m-1")
    with pytest.raises(PrivacyError, match="Noise is used once"):
        root.child("release", "m-1")


def test_a_poisson_sample_takes_each_record_by_itself():
    source, rate, population = NoiseSource.from_seed(7), 0.3, 500
    counts = np.zeros(population)
    sizes = []
    for _ in range(2000):
        sample = source.poisson_sample(population, rate)
        counts[sample] += 1
        sizes.append(len(sample))
    statistic = ((counts - 2000 * rate) ** 2).sum() / (2000 * rate * (1 - rate))
    assert chi2.ppf(FALSE_ALARM, population) < statistic < chi2.isf(FALSE_ALARM, population)
    assert np.var(sizes) == pytest.approx(population * rate * (1 - rate), rel=0.15)


def test_a_sample_at_rate_one_is_everyone():
    assert len(NoiseSource.from_seed(8).poisson_sample(1000, 1.0)) == 1000


def test_a_permutation_is_one_and_every_place_is_equally_likely():
    source = NoiseSource.from_seed(9)
    places = np.zeros((6, 6))
    for _ in range(6000):
        order = source.permutation(6)
        assert sorted(order) == list(range(6))
        places[np.arange(6), order] += 1
    assert ((places - 1000) ** 2 / 1000).sum() < chi2.isf(FALSE_ALARM, 25)


def test_drawing_noise_leaves_global_generators_alone():
    torch.manual_seed(0)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    NoiseSource.from_entropy().normal((10,), 1.0, like=torch.zeros(1))
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])


def test_noise_follows_its_like():
    like = torch.zeros(1, dtype=torch.float16)
    assert NoiseSource.from_seed(1).normal((2, 3), 1.0, like=like).dtype == torch.float16
    assert NoiseSource.from_seed(1).normal((2, 0), 1.0, like=like).shape == (2, 0)
