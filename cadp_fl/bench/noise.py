"""Privacy noise from the cryptographic generator, against a generator whose outputs can be predicted."""

import torch

from cadp_fl.bench.contest import Benchmark, Contender, Contest, Setting
from cadp_fl.privacy.noise import NoiseSource

__all__ = ["NOISE"]


def _noise(setting: Setting) -> Contest:
    shape = (16 if setting.quick else 512, 784)
    like = torch.zeros(1, device=setting.device)
    source = NoiseSource.from_entropy()
    return Contest(
        Contender(shape[0] * shape[1], lambda: source.normal(shape, 1.0, like=like)),
        Contender(shape[0] * shape[1], lambda: torch.randn(shape, device=setting.device)),
    )


NOISE = Benchmark(
    title="draw normal noise, 512 x 784",
    reference="torch.randn, which is no cryptographic generator: below 1 is the price of one",
    unit="values",
    prepare=_noise,
)
