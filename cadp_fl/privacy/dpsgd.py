"""DP-SGD: w <- w - lr (sum_i clip(g_i; C) + N(0, sigma^2 I)) / (q n) over a Poisson sample of rate q.

Opacus computes per-record gradients and keeps the optimizer's books. Three things differ from its stock
optimizer, and follow the project's privacy rules: noise and samples come from the site's own entropy source; a
record whose gradient is not finite counts as zero, instead of turning the whole sum into NaN; and norms are
summed in float64 and clipped with a margin.

References:
    Abadi et al.: Deep learning with differential privacy, arXiv 1607.00133.
    Yousefpour et al.: Opacus, arXiv 2109.12298.
"""

import logging
import warnings
from collections.abc import Callable

import torch
from torch import nn

from cadp_fl.errors import PrivacyError
from cadp_fl.privacy.accounting import PoissonGaussian
from cadp_fl.privacy.clipping import clip_factors, is_clippable
from cadp_fl.privacy.noise import NoiseSource

_root_handlers = logging.root.handlers[:]
from opacus import GradSampleModule  # noqa: E402
from opacus.optimizers import DPOptimizer  # noqa: E402

logging.root.handlers[:] = _root_handlers  # importing Opacus adds one, which would print every library's debug lines

__all__ = ["COVERED_LAYERS", "check_layers", "train_dp_sgd"]

COVERED_LAYERS = (
    nn.Conv2d,
    nn.Linear,
    nn.GroupNorm,
    nn.ReLU,
    nn.Tanh,
    nn.AdaptiveAvgPool2d,
    nn.MaxPool2d,
    nn.Flatten,
    nn.Sequential,
)
"""Layers that treat each record of a batch by itself and keep nothing of it. All others are refused."""


def check_layers(model: nn.Module) -> None:
    """Check that no layer mixes records or learns buffers from them.

    Raises:
        PrivacyError: a layer is not on the list.
    """
    for name, layer in model.named_modules():
        if not isinstance(layer, COVERED_LAYERS):
            raise PrivacyError(
                f"DP-SGD takes layers that treat each record by itself. Found {type(layer).__name__} at "
                f"'{name or 'the top'}'; use GroupNorm for a norm, and one of: "
                f"{', '.join(kind.__name__ for kind in COVERED_LAYERS)}."
            )


class _SiteOptimizer(DPOptimizer):
    """Opacus' optimizer with the site's own noise, and with sums that one bad record cannot spoil."""

    def __init__(self, optimizer: torch.optim.Optimizer, event: PoissonGaussian, records: int, noise: NoiseSource):
        super().__init__(
            optimizer,
            noise_multiplier=event.noise_std / event.clip_norm,
            max_grad_norm=event.clip_norm,
            # The public q n, not the realised size of the sample, which depends on who is in it.
            expected_batch_size=event.sampling_rate * records,
            loss_reduction="mean",
        )
        self._noise = noise
        self._noise_std = event.noise_std

    def clip_and_accumulate(self) -> None:
        """Write sum_i clip(g_i; C) into every parameter's `summed_grad`."""
        gradients = [self._get_flat_grad_sample(parameter) for parameter in self.params]
        squares = [gradient.double().flatten(1).square().sum(dim=1) for gradient in gradients]
        norms = torch.stack(squares).sum(dim=0).sqrt()
        factors = clip_factors(norms, self.max_grad_norm)
        clippable = is_clippable(norms)
        for parameter, gradient in zip(self.params, gradients, strict=True):
            keep = clippable.view(-1, *[1] * (gradient.dim() - 1))
            safe = torch.where(keep, gradient, torch.zeros_like(gradient))
            parameter.summed_grad = torch.einsum("i,i...", factors.to(safe.dtype), safe)

    def add_noise(self) -> None:
        """Write sum_i clip(g_i; C) + N(0, sigma^2 I) into every parameter's `grad`."""
        for parameter in self.params:
            summed = parameter.summed_grad
            parameter.grad = summed + self._noise.normal(tuple(summed.shape), self._noise_std, like=summed)


def train_dp_sgd(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    event: PoissonGaussian,
    *,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    noise: NoiseSource,
) -> None:
    """Train in place for `event.steps` steps of cross-entropy. Nothing but the weights comes back.

    Args:
        model: made of covered layers alone; (batch, ...) to logits (batch, classes).
        images: float, (records, channels, height, width), on the model's device.
        labels: int64, (records,).
        event: clip norm, noise, sampling rate and steps; what the call costs.
        optimizer: makes the optimizer of the noised gradients.
        noise: draws noise and samples.

    Raises:
        PrivacyError: the model has a layer that is not covered.
    """
    check_layers(model)
    records = len(labels)
    wrapped = GradSampleModule(model, loss_reduction="sum")
    try:
        stepper = _SiteOptimizer(optimizer(list(model.parameters())), event, records, noise.child("gradients"))
        samples = noise.child("samples")
        wrapped.train()
        for _ in range(event.steps):
            chosen = torch.from_numpy(samples.poisson_sample(records, event.sampling_rate)).to(images.device)
            stepper.zero_grad(set_to_none=True)
            if len(chosen):
                _backward(nn.functional.cross_entropy(wrapped(images[chosen]), labels[chosen], reduction="sum"))
            else:
                _pretend_empty_batch(model)
            stepper.step()
    finally:
        wrapped.remove_hooks()
        for parameter in model.parameters():
            parameter.grad = None
            for attribute in ("grad_sample", "summed_grad"):
                if hasattr(parameter, attribute):
                    delattr(parameter, attribute)


def _backward(loss: torch.Tensor) -> None:
    """Call `loss.backward()` without torch's remark that images need no gradient, which is as it should be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        loss.backward()


def _pretend_empty_batch(model: nn.Module) -> None:
    """Give every parameter the gradients of no record at all: an empty sample still takes its noised step."""
    for parameter in model.parameters():
        parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))  # type: ignore[attr-defined]
