"""Federated averaging, against a plain loop over state dicts."""

import numpy as np
import torch

from cadp_fl.bench.contest import Benchmark, Contender, Contest, Setting
from cadp_fl.weights import average

__all__ = ["AGGREGATION"]

SITES = 5


def _aggregation(setting: Setting) -> Contest:
    layers = 4 if setting.quick else 80
    shapes = {f"{layer}.{name}": shape for layer in range(layers) for name, shape in _LAYER.items()}
    draw = np.random.default_rng(1)
    sites = {
        f"site-{index}": {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        for index in range(SITES)
    }
    sizes = {site: 100 + 37 * index for index, site in enumerate(sites)}
    states = [{name: torch.from_numpy(array) for name, array in weights.items()} for weights in sites.values()]
    counts, total = list(sizes.values()), sum(sizes.values())

    def reference() -> None:
        for name, first in states[0].items():
            added = sum(state[name].double() * count for state, count in zip(states, counts, strict=True))
            torch.as_tensor(added / total).to(first.dtype)

    parameters = sum(array.size for array in sites["site-0"].values())
    return Contest(Contender(parameters, lambda: average(sites, sizes)), Contender(parameters, reference))


_LAYER = {"first.weight": (128, 8, 3, 3), "first.bias": (128,), "last.weight": (16, 128, 3, 3), "last.bias": (16,)}

AGGREGATION = Benchmark(
    title=f"average the weights of {SITES} sites, in float64",
    reference="a loop over state dicts of torch tensors, in float64",
    unit="parameters",
    prepare=_aggregation,
)
