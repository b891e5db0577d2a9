"""Classifiers, in one registry. Each works with per-record gradients: no layer mixes the records of a batch.

To add one, write a function from (shape, classes, width) to a module and put it into `CLASSIFIERS`.
"""

import math
from collections.abc import Callable

import torch
from torch import nn

from cadp_fl.classifier.quadratic import QuadraticDiscriminant
from cadp_fl.config import ClassifierConfig
from cadp_fl.data.codec import RowShape
from cadp_fl.errors import ConfigError
from cadp_fl.features.linear import BlockGradients, LowPassDct, RowNumbers

__all__ = ["CLASSIFIERS", "QUADRATIC", "build_classifier", "check_classifier"]


_WIDE_ENOUGH = 14
"""Pixels a side, from which on wide convolutions leave something of an image."""


def _cnn(shape: tuple[int, ...], classes: int, width: int) -> nn.Module:
    """Return two 3 x 3 convolutions with group norm, pooled to at most 7 x 7, and two linear layers."""
    channels, height = shape[:2]
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


def _tanh_cnn(shape: tuple[int, ...], classes: int, width: int) -> nn.Module:
    """Return two convolutions and two linear layers with tanh, which bounds what a layer passes on.

    The convolutions are wide and strided, 8 x 8 and 4 x 4, or 3 x 3 on an image of less than 14 pixels a side. What
    comes of them is pooled to at most 4 x 4.

    References:
        Papernot, Thakurta, Song, Chien, Erlingsson: Tempered sigmoid activations for deep learning with differential
        privacy, arXiv 2007.14191.
    """
    channels = shape[0]
    if min(shape[1:]) < _WIDE_ENOUGH:
        first, second = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, padding=1)
        convolutions = nn.Sequential(first, nn.Tanh(), second, nn.Tanh())
    else:
        first, second = nn.Conv2d(channels, width, 8, stride=2, padding=3), nn.Conv2d(width, 2 * width, 4, stride=2)
        convolutions = nn.Sequential(first, nn.Tanh(), nn.MaxPool2d(2, 1), second, nn.Tanh(), nn.MaxPool2d(2, 1))
    height, breadth = (min(4, side) for side in convolutions(torch.zeros(1, *shape)).shape[2:])
    return nn.Sequential(
        *convolutions,
        nn.AdaptiveAvgPool2d((height, breadth)),
        nn.Flatten(),
        nn.Linear(2 * width * height * breadth, 2 * width),
        nn.Tanh(),
        nn.Linear(2 * width, classes),
    )


def _linear(shape: tuple[int, ...], classes: int, _width: int) -> nn.Module:
    """Return one linear layer on the pixels: few parameters, so that noise on its gradient spoils little."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


def _linear_dct(shape: tuple[int, ...], classes: int, _width: int) -> nn.Module:
    """Return one linear layer on an image's lowest frequencies."""
    return _linear_on(LowPassDct(), shape, classes)


def _linear_hog(shape: tuple[int, ...], classes: int, _width: int) -> nn.Module:
    """Return one linear layer on histograms of an image's oriented gradients."""
    return _linear_on(BlockGradients(), shape, classes)


def _logistic(shape: tuple[int, ...], classes: int, _width: int) -> nn.Module:
    """Return one linear layer on a row's numbers, scaled to a norm of at most 1, and on a constant."""
    if not isinstance(shape, RowShape):
        raise ConfigError(
            f"The classifier logistic is for rows of a table. These records are images; choose one of: "
            f"{', '.join(sorted({*CLASSIFIERS, QUADRATIC} - {'logistic'}))}."
        )
    return _linear_on(RowNumbers(shape), shape, classes)


def _linear_on(features: nn.Module, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return one linear layer on fixed features. It begins at zero: under noise a random start is only more noise."""
    layer = nn.Linear(features(torch.zeros(1, *shape)).shape[1], classes, bias=False)
    nn.init.zeros_(layer.weight)
    return nn.Sequential(features, layer)


CLASSIFIERS: dict[str, Callable[[tuple[int, ...], int, int], nn.Module]] = {
    "cnn": _cnn,
    "linear": _linear,
    "linear-dct": _linear_dct,
    "linear-hog": _linear_hog,
    "logistic": _logistic,
    "tanh-cnn": _tanh_cnn,
}

_OF_IMAGES = {"cnn", "linear-dct", "linear-hog", "tanh-cnn"}

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


def build_classifier(config: ClassifierConfig, shape: tuple[int, ...], classes: int, *, seed: int) -> nn.Module:
    """Return a new classifier: records in [-0.5, 0.5], (batch, *shape), to logits (batch, classes).

    The same arguments give the same initial weights.

    Raises:
        ConfigError: the classifier is unknown, or of another kind of records.
    """
    check_classifier(config)
    if isinstance(shape, RowShape) and config.model in _OF_IMAGES:
        raise ConfigError(
            f"The classifier {config.model} is for images. These records are rows; choose one of: "
            f"{', '.join(sorted({*CLASSIFIERS, QUADRATIC} - _OF_IMAGES))}."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.model == QUADRATIC:
            return QuadraticDiscriminant(config.front_end, shape, classes)
        return CLASSIFIERS[config.model](shape, classes, config.width)
