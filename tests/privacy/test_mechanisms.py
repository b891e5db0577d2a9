import pytest
import torch
from scipy.stats import kstest

from cadp_fl.errors import ConfigError
from cadp_fl.privacy.accounting import epsilon_of, gaussian_delta
from cadp_fl.privacy.mechanisms import GaussianMechanism, mechanism_type
from cadp_fl.privacy.noise import NoiseSource


@pytest.mark.parametrize("epsilon", [1.0, 3.0, 10.0])
def test_calibration_is_analytic_for_sensitivity_two_c(epsilon):
    mechanism = GaussianMechanism.calibrated(4.0, epsilon, 1e-5)
    assert mechanism.sensitivity == 8.0
    assert gaussian_delta(epsilon, mechanism.noise_std, 8.0) <= 1e-5
    assert gaussian_delta(epsilon, mechanism.noise_std * 0.999, 8.0) > 1e-5
    assert 0.999 * epsilon <= epsilon_of([mechanism.event()], 1e-5) <= epsilon


def test_what_comes_out_is_the_clipped_latent_plus_noise_of_its_own():
    latents = torch.tensor([[30.0, 40.0], [0.3, 0.4]]).repeat(20_000, 1)
    out = GaussianMechanism(1.0, 2.0)(latents, noise=NoiseSource.from_seed(1))
    centre = torch.tensor([[0.6, 0.8], [0.3, 0.4]]).repeat(20_000, 1)
    assert kstest(((out - centre) / 2.0).flatten().numpy(), "norm").pvalue > 1e-4


def test_no_noise_and_a_wide_clip_give_the_latent_back():
    latents = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(GaussianMechanism(1e6, 0.0)(latents, noise=NoiseSource.from_seed(1)), latents)


def test_an_unknown_mechanism_is_named():
    with pytest.raises(ConfigError, match="Choose one of: gaussian"):
        mechanism_type("gauss")
