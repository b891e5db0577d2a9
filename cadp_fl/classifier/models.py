"""Classifiers, in one registry. Each works with per-record gradients: no layer mixes the records of a batch.

To add one, write a function from (shape, classes, width) to a module and put it into `CLASSIFIERS`.
"""

import math
from collections.abc import Callable

import torch
from torch import nn

from cadp_fl.classifier.quadratic import QuadraticDiscriminant
from cadp_fl.config import ClassifierConfig
from cadp_fl.errors import ConfigError

__all__ = ["CLASSIFIERS", "QUADRATIC", "build_classifier", "check_classifier"]


def _cnn(shape: tuple[int, int, int], classes: int, width: int) -> nn.Module:
    """Return two 3 x 3 convolutions with group norm, pooled to at most 7 x 7, and two linear layers."""
    channels, height, _ = shape
    pooled = min(7, max(2, height // 4))
    groups = math.gcd(8, width)
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.GroupNorm(groups, width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.GroupNorm(groups, 2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(pooled),
        nn.Flatten(),
        nn.Linear(2 * width * pooled**2, 4 * width),
        nn.ReLU(),
        nn.Linear(4 * width, classes),
    )


def _linear(shape: tuple[int, int, int], classes: int, _width: int) -> nn.Module:
    """Return one linear layer on the pixels: few parameters, so that noise on its gradient spoils little."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


CLASSIFIERS: dict[str, Callable[[tuple[int, int, int], int, int], nn.Module]] = {"cnn": _cnn, "linear": _linear}


QUADRATIC = "quadratic"
"""The classifier that has a front end, as the flow that it is fitted to."""


def check_classifier(config: ClassifierConfig) -> None:
    """Check that a config names a classifier.

    Raises:
        ConfigError: the classifier is unknown.
    """
    known = [*CLASSIFIERS, QUADRATIC]
    if config.model not in known:
        raise ConfigError(f"Unknown classifier '{config.model}'. Choose one of: {', '.join(sorted(known))}.")


def build_classifier(config: ClassifierConfig, shape: tuple[int, int, int], classes: int, *, seed: int) -> nn.Module:
    """Return a new classifier: images in [-0.5, 0.5], (batch, channels, height, width), to logits (batch, classes).

    The same arguments give the same initial weights.

    Raises:
        ConfigError: the classifier is unknown.
    """
    check_classifier(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.model == QUADRATIC:
            return QuadraticDiscriminant(config.front_end, shape, classes)
        return CLASSIFIERS[config.model](shape, classes, config.width)
