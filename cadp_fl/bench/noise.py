"""Privacy noise from the cryptographic generator, against one whose outputs can be predicted; and on a grid."""

import torch

from cadp_fl.bench.contest import Benchmark, Contender, Contest, Setting
from cadp_fl.privacy.noise import NoiseSource

__all__ = ["NOISE", "NOISE_ON_GRID"]

DIMS = 784
STEPS_IN_STD = 5000.0
"""Of the noise on a grid; the mechanism has from 4096 to 8192."""


def _noise(setting: Setting) -> Contest:
    shape = (16 if setting.quick else 512, DIMS)
    like = torch.zeros(1, device=setting.device)
    source = NoiseSource.from_entropy()
    return Contest(
        Contender(shape[0] * shape[1], lambda: source.normal(shape, 1.0, like=like)),
        Contender(shape[0] * shape[1], lambda: torch.randn(shape, device=setting.device)),
    )


def _noise_on_grid(setting: Setting) -> Contest:
    shape = (16 if setting.quick else 512, DIMS)
    like = torch.zeros(1, device=setting.device)
    source = NoiseSource.from_entropy()
    return Contest(
        Contender(shape[0] * shape[1], lambda: source.rounded_normal(shape, STEPS_IN_STD, like=like)),
        Contender(shape[0] * shape[1], lambda: source.normal(shape, 1.0, like=like)),
    )


NOISE = Benchmark(
    title="draw normal noise, 512 x 784",
    reference="torch.randn, which is no cryptographic generator: below 1 is the price of one",
    unit="values",
    prepare=_noise,
)

NOISE_ON_GRID = Benchmark(
    title="draw normal noise, exactly rounded to integers, 512 x 784",
    reference="the same noise in floating point: below 1 is the price of exactness",
    unit="values",
    prepare=_noise_on_grid,
)
