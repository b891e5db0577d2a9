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

from cadp_fl.device import PhysicalBatch
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
        if type(layer) not in COVERED_LAYERS:  # a class derived from one may do anything in its forward
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
            loss_reduction="sum",
        )
        self._noise = noise
        self._noise_std = event.noise_std

    def clip_and_accumulate(self) -> None:
        """Add sum_i clip(g_i; C) over the records at hand to every parameter's `summed_grad`, and drop their g_i."""
        gradients = [self._get_flat_grad_sample(parameter) for parameter in self.params]
        squares = [gradient.double().flatten(1).square().sum(dim=1) for gradient in gradients]
        norms = torch.stack(squares).sum(dim=0).sqrt()
        factors = clip_factors(norms, self.max_grad_norm)
        clippable = is_clippable(norms)
        for parameter, gradient in zip(self.params, gradients, strict=True):
            keep = clippable.view(-1, *[1] * (gradient.dim() - 1))
            safe = torch.where(keep, gradient, torch.zeros_like(gradient))
            clipped = torch.einsum("i,i...", factors.to(safe.dtype), safe)
            summed = getattr(parameter, "summed_grad", None)
            parameter.summed_grad = clipped if summed is None else summed + clipped
            parameter.grad_sample = None

    def noised_step(self) -> None:
        """Take one step along (sum_i clip(g_i; C) + N(0, sigma^2 I)) / (q n)."""
        self.add_noise()
        for parameter in self.params:
            parameter.grad /= self.expected_batch_size
        self.original_optimizer.step()

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
    physical_batch: int = 1024,
) -> None:
    """Train in place for `event.steps` steps of cross-entropy. Nothing but the weights comes back.

    Where a Poisson sample does not fit into memory, its gradients are clipped and summed in parts: the sample, the
    noise and the cost stay the same.

    Args:
        model: made of covered layers alone; (batch, ...) to logits (batch, classes).
        images: float, (records, channels, height, width), on the model's device.
        labels: int64, (records,).
        event: clip norm, noise, sampling rate and steps; what the call costs.
        optimizer: makes the optimizer of the noised gradients.
        noise: draws noise and samples.
        physical_batch: records whose gradients are held at once, to begin with.

    Raises:
        PrivacyError: the model has a layer that is not covered.
        MemoryLimitError: the gradient of a single record does not fit.
    """
    check_layers(model)
    records = len(labels)
    wrapped = GradSampleModule(model, loss_reduction="sum")
    try:
        stepper = _SiteOptimizer(optimizer(list(model.parameters())), event, records, noise.child("gradients"))
        samples = noise.child("samples")
        physical = PhysicalBatch(physical_batch)
        wrapped.train()
        for _ in range(event.steps):
            chosen = torch.from_numpy(samples.poisson_sample(records, event.sampling_rate)).to(images.device)
            _sum_clipped_gradients(wrapped, stepper, images[chosen], labels[chosen], physical)
            stepper.noised_step()
    finally:
        wrapped.remove_hooks()
        for parameter in model.parameters():
            parameter.grad = None
            for attribute in ("grad_sample", "summed_grad"):
                if hasattr(parameter, attribute):
                    delattr(parameter, attribute)


def _sum_clipped_gradients(
    model: GradSampleModule,
    stepper: _SiteOptimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    physical: PhysicalBatch,
) -> None:
    """Write the sum of the records' clipped gradients into every parameter's `summed_grad`; zero if there is none."""

    def clear() -> None:
        _forget_unfinished_pass(model)
        stepper.zero_grad(set_to_none=True)
        for parameter in stepper.params:
            parameter.summed_grad = torch.zeros_like(parameter)

    def add(part: slice) -> None:
        _backward(nn.functional.cross_entropy(model(images[part]), labels[part], reduction="sum"))
        stepper.clip_and_accumulate()

    clear()
    physical.each(len(labels), add, restart=clear)


def _forget_unfinished_pass(model: nn.Module) -> None:
    """Drop what Opacus' hooks recorded in a pass that ran out of memory."""
    for module in model.modules():
        for attribute in ("activations", "max_batch_len"):
            if hasattr(module, attribute):
                delattr(module, attribute)
    for parameter in model.parameters():
        parameter._forward_counter = 0  # type: ignore[attr-defined]
        if hasattr(parameter, "_current_grad_sample"):
            del parameter._current_grad_sample


def _backward(loss: torch.Tensor) -> None:
    """Call `loss.backward()` without torch's remark that images need no gradient, which is as it should be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        loss.backward()
