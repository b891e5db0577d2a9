"""DP-SGD: w <- w - lr (sum_u clip(g_u; C) + N(0, sigma^2 I)) / (q n) over a Poisson sample of rate q.

The sum is over privacy units: g_u is a record's gradient, or the mean over a patient's records, and over copies of each
that the loss changes at random. `ClippedGradients` computes the sum. Noise and samples come from the site's own entropy
source, the divisor is the public q n, and an empty sample takes its noised step as any other.

What follows a noised step costs nothing: momentum, a schedule, an average of the weights.

References:
    Abadi et al.: Deep learning with differential privacy, arXiv 1607.00133.
    De, Berrada, Hayes, Smith, Balle: Unlocking high-accuracy differentially private image classification through scale,
    arXiv 2204.13650 (copies, averages of weights).
    Yousefpour et al.: Opacus, arXiv 2109.12298.
"""

import logging
import warnings
from collections.abc import Callable, Collection

import torch
from torch import nn

from cadp_fl.device import PhysicalBatch, swift_batch
from cadp_fl.errors import PrivacyError
from cadp_fl.privacy.events import PoissonGaussian
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.per_record import GRADIENT_LAYERS, ClippedGradients

__all__ = [
    "COVERED_LAYERS",
    "Loss",
    "WeightAverage",
    "check_layers",
    "cross_entropy_of",
    "opacus_gradients",
    "train_dp_sgd",
]

COVERED_LAYERS: tuple[type[nn.Module], ...] = (
    *GRADIENT_LAYERS,
    nn.ReLU,
    nn.Tanh,
    nn.AdaptiveAvgPool2d,
    nn.MaxPool2d,
    nn.Flatten,
    nn.Sequential,
)
"""Layers that treat each record of a batch by itself and keep nothing of it. All others are refused."""

Loss = Callable[[nn.Module, torch.Tensor], torch.Tensor]
"""(model, which records: int64 (batch,)) to a loss of each, (batch,), that depends on that record alone."""

_MOST_RECORDS = 1024
_INSTEAD = {
    "BatchNorm": "GroupNorm",
    "InstanceNorm": "GroupNorm",
    "LayerNorm": "GroupNorm",
    "AllInOneBlock": "GLOWCouplingBlock after a fixed permutation",
    "ActNorm": "a coupling block alone: it learns its start from a batch",
    "OrthogonalTransform": "a fixed permutation",
    "HouseholderPerm": "a fixed permutation",
    "ConvTranspose": "Conv2d",
    "MultiheadAttention": "Linear layers",
    "Dropout": "nothing in its place",
}


def check_layers(model: nn.Module, also: Collection[type[nn.Module]] = ()) -> None:
    """Check that no layer mixes records or learns buffers from them, and that all that is trained can be clipped.

    Args:
        also: further classes that treat each record by itself, on the word of whoever names them. Any weights that they
            train are in covered layers inside of them.

    Raises:
        PrivacyError: a layer is not on the list, or trains what no covered layer has.
    """
    known = {*COVERED_LAYERS, *also}
    for path, layer in model.named_modules():
        name, place = type(layer).__name__, f"'{path or 'the top'}'"
        if type(layer) not in known:  # a class derived from one may do anything in its forward
            instead = next((f"use {text}" for part, text in _INSTEAD.items() if name.startswith(part)), "")
            raise PrivacyError(
                f"DP-SGD takes layers that treat each record by itself. Found {name} at {place}; "
                f"{instead or 'use GroupNorm for a norm'}, and one of: "
                f"{', '.join(kind.__name__ for kind in COVERED_LAYERS)}."
            )
        trained = {key for key, value in layer.named_parameters(recurse=False) if value.requires_grad}
        beyond = trained - ({"weight", "bias"} if type(layer) in GRADIENT_LAYERS else set())
        if beyond:
            raise PrivacyError(
                f"DP-SGD trains the weight and bias of {', '.join(kind.__name__ for kind in GRADIENT_LAYERS)}. Found "
                f"{', '.join(sorted(beyond))} of {name} at {place}; freeze it, or compute it by such a layer."
            )
        if isinstance(layer, nn.Conv2d) and trained and layer.padding_mode != "zeros":
            raise PrivacyError(
                f"DP-SGD trains a convolution that pads with zeros. Found {layer.padding_mode} at {place}; use zeros."
            )
        if isinstance(layer, nn.ReLU) and layer.inplace:
            raise PrivacyError(
                f"Under DP-SGD what went through a layer stays as it was. Found an in-place ReLU at {place}; leave "
                "inplace out."
            )


class WeightAverage:
    """a <- a + (w - a) (1 - b) / (1 - b^t) after step t: the mean of all weights so far, older ones b times less each.

    It starts at nothing, so the weights before the first step have no part in it. Post-processing: it costs nothing.

    Args:
        model: whose trainable weights are averaged.
        decay: b, in [0, 1).

    Raises:
        PrivacyError: the decay is out of range.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise PrivacyError(f"An average of weights forgets: its decay is in [0, 1). Found {decay}; try 0.99.")
        self._weights = [each for each in model.parameters() if each.requires_grad]
        self._means = [each.detach().clone() for each in self._weights]
        self._decay, self._steps = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's weights in, as they are after a step."""
        self._steps += 1
        share = (1 - self._decay) / (1 - self._decay**self._steps)
        for mean, weight in zip(self._means, self._weights, strict=True):
            mean.lerp_(weight, share)

    @torch.no_grad()
    def replace(self) -> None:
        """Write the average into the model."""
        for mean, weight in zip(self._means, self._weights, strict=True):
            weight.copy_(mean)


def cross_entropy_of(images: torch.Tensor, labels: torch.Tensor, class_weights: torch.Tensor | None = None) -> Loss:
    """Return the loss of a classifier: -log p(y | x) of inputs, float (records, ...), and labels, int64 (records,).

    Args:
        class_weights: float (classes,), on the same device: factor of the loss of a class's records, 1 by default. A
            unit's gradient is clipped afterwards, so that weights change nothing of what training costs.
    """

    def loss(model: nn.Module, records: torch.Tensor) -> torch.Tensor:
        logits = model(images[records])
        return nn.functional.cross_entropy(logits, labels[records], weight=class_weights, reduction="none")

    return loss


def train_dp_sgd(
    model: nn.Module,
    loss: Loss,
    event: PoissonGaussian,
    *,
    units: torch.Tensor,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    noise: NoiseSource,
    copies: int = 1,
    schedule: Callable[[float], float] = lambda position: 1.0,
    average: WeightAverage | None = None,
    covered: Collection[type[nn.Module]] = (),
    physical_batch: int | None = None,
) -> None:
    """Train in place for `event.steps` steps. Nothing but the weights comes back.

    Where a Poisson sample does not fit into memory, its gradients are clipped and summed in parts: the sample, the
    noise and the cost stay the same.

    Args:
        model: made of covered layers alone. Parameters that do not require gradients stay as they are.
        loss: of each record by itself. It may draw at random, again whenever it is called.
        event: clip norm, noise, sampling rate and steps; what the call costs.
        units: int64 (units, m), on the model's device: which records each privacy unit contributes, -1 for none; the
            first is no -1. `torch.arange(n)[:, None]` makes each record a unit.
        optimizer: makes the optimizer of the noised gradients.
        noise: draws noise and samples.
        copies: K; each record goes K times into `loss`, and its gradient is their mean.
        schedule: maps the share of the steps that are done, in [0, 1), to a factor of the optimizer's learning rates.
        average: takes the weights in after each step; whoever made it decides whether they replace the model's.
        covered: classes beside `COVERED_LAYERS` that treat each record by itself.
        physical_batch: records, copies counted, that pass through the model at once, to begin with; what a processor's
            cache holds by default.

    Raises:
        PrivacyError: the model has a layer that is not covered, or a loss is not one a record.
        MemoryLimitError: the gradient of a single unit does not fit.
    """
    check_layers(model, covered)
    gradients = ClippedGradients(model, event.clip_norm)
    stepper = optimizer(gradients.parameters)
    rates = [group["lr"] for group in stepper.param_groups]
    source, samples = noise.child("gradients"), noise.child("samples")
    places = units.shape[1] * copies
    was_training = model.training
    model.train()
    try:
        at_once = physical_batch or _swift_batch(model, loss, units)
        physical = PhysicalBatch(max(1, at_once // places))
        with gradients:
            for step in range(event.steps):
                chosen = torch.from_numpy(samples.poisson_sample(len(units), event.sampling_rate)).to(units.device)
                _sum_clipped(
                    gradients=gradients, model=model, loss=loss, units=units[chosen], copies=copies, physical=physical
                )
                for group, rate in zip(stepper.param_groups, rates, strict=True):
                    group["lr"] = rate * schedule(step / event.steps)
                _noised_step(gradients, stepper, event, source, event.sampling_rate * len(units))
                if average is not None:
                    average.update()
    finally:
        model.train(was_training)
        for parameter in gradients.parameters:
            parameter.grad = None


def _swift_batch(model: nn.Module, loss: Loss, units: torch.Tensor) -> int:
    if not len(units):
        return _MOST_RECORDS
    probe = PhysicalBatch(1)
    return probe.each(1, lambda _: swift_batch(_MOST_RECORDS, model, lambda: loss(model, units[0, :1])))[0]


def _sum_clipped(
    gradients: ClippedGradients,
    model: nn.Module,
    loss: Loss,
    units: torch.Tensor,
    copies: int,
    physical: PhysicalBatch,
) -> None:
    """Set the gradients' sums to those of the sampled units; to zero if there is none."""

    def add(part: slice) -> None:
        # A unit fills m K places, whatever it has: how a record's gradient is rounded depends on how many are computed
        # beside it, and weights of an attacker's choice make that as large as the gradient. So the number of a unit's
        # records must not move the others' places.
        chosen = units[part].repeat_interleave(copies, dim=1)
        present = chosen >= 0
        records = torch.where(present, chosen, chosen[:, :1]).reshape(-1)
        gradients.add(lambda: loss(model, records), present)

    gradients.clear()
    physical.each(len(units), add, restart=gradients.restart)


@torch.no_grad()
def _noised_step(
    gradients: ClippedGradients,
    stepper: torch.optim.Optimizer,
    event: PoissonGaussian,
    noise: NoiseSource,
    expected: float,
) -> None:
    """Take one step along (sum_u clip(g_u; C) + N(0, sigma^2 I)) / (q n); `expected` is q n."""
    for parameter, total in zip(gradients.parameters, gradients.sums, strict=True):
        noised = total + noise.normal(tuple(total.shape), event.noise_std, like=total)
        parameter.grad = (noised / expected).to(parameter.dtype)
    stepper.step()


def opacus_gradients(model: nn.Module, loss: Loss, records: torch.Tensor) -> list[torch.Tensor]:
    """Return every trainable parameter's gradients of some records' losses as Opacus' hooks compute them.

    A reference to compare with, and not a part of training. Convolutions are given their input in rows: of one with
    channels last, Opacus 1.6.0 returns other gradients than autograd, in silence.

    Returns:
        One tensor a trainable parameter, (records, ...).
    """
    root_handlers = logging.root.handlers[:]
    from opacus import GradSampleModule  # half a second, which only a comparison is worth

    logging.root.handlers[:] = root_handlers  # importing Opacus adds one, which would print every library's debug lines
    trained = [each for each in model.parameters() if each.requires_grad]
    wrapped = GradSampleModule(model, loss_reduction="sum", strict=False)
    in_rows = [
        layer.register_forward_pre_hook(lambda _, inputs: tuple(each.contiguous() for each in inputs))
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            loss(model, records).sum().backward()
        return [each.grad_sample for each in trained]  # type: ignore[attr-defined]
    finally:
        wrapped.remove_hooks()
        for hook in in_rows:
            hook.remove()
        for parameter in trained:
            parameter.grad = None
            if hasattr(parameter, "grad_sample"):
                del parameter.grad_sample
