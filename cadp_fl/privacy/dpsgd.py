"""DP-SGD: w <- w - lr (sum_i clip(g_i; C) + N(0, sigma^2 I)) / (q n) over a Poisson sample of rate q.

The sum is over privacy units: g_i is a record's gradient, or the mean of a patient's. Opacus computes per-record
gradients and keeps the optimizer's books. Four things differ from its stock optimizer, and follow the project's privacy
rules: noise and samples come from the site's own entropy source; a unit whose gradient is not finite counts as zero,
instead of turning the whole sum into NaN; norms are taken in float64 and clipped with a margin; and sums are added up
and noised in float64, so that rounding does not move them by more than the margin.

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


_UNITS_IN_FLOAT64 = 64
"""Gradients that are held in float64 at once, so that memory stays near that of float32."""


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

    def __init__(self, optimizer: torch.optim.Optimizer, event: PoissonGaussian, units: int, noise: NoiseSource):
        super().__init__(
            optimizer,
            noise_multiplier=event.noise_std / event.clip_norm,
            max_grad_norm=event.clip_norm,
            # The public q n, not the realised size of the sample, which depends on who is in it.
            expected_batch_size=event.sampling_rate * units,
            loss_reduction="sum",
        )
        self._noise = noise
        self._noise_std = event.noise_std

    def clip_and_accumulate(self, present: torch.Tensor) -> None:
        """Add sum_i clip(g_i; C) over the units at hand to every parameter's `summed_grad`, and drop their gradients.

        Args:
            present: bool (units, m): which of the records whose gradients are at hand, m of each unit, are no blanks.
        """
        gradients = [self._get_flat_grad_sample(parameter) for parameter in self.params]
        if present.shape[1] > 1:
            gradients = [_means(gradient, present) for gradient in gradients]
        for start in range(0, len(present), _UNITS_IN_FLOAT64):
            self._add_clipped([gradient[start : start + _UNITS_IN_FLOAT64].double() for gradient in gradients])
        for parameter in self.params:
            parameter.grad_sample = None

    def _add_clipped(self, gradients: list[torch.Tensor]) -> None:
        """Add sum_i clip(g_i; C) to every parameter's `summed_grad`; of each, a float64 gradient (units, ...)."""
        squares = [gradient.flatten(1).square().sum(dim=1) for gradient in gradients]
        norms = torch.stack(squares).sum(dim=0).sqrt()
        factors = clip_factors(norms, self.max_grad_norm)
        clippable = is_clippable(norms)
        for parameter, gradient in zip(self.params, gradients, strict=True):
            keep = clippable.view(-1, *[1] * (gradient.dim() - 1))
            parameter.summed_grad += torch.einsum("i,i...", factors, gradient.where(keep, 0.0))

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
            noised = summed + self._noise.normal(tuple(summed.shape), self._noise_std, like=summed)
            parameter.grad = noised.to(parameter.dtype)


def _means(gradients: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Return the mean gradient of each unit's records, (units, ...), from those of m a unit, (units m, ...)."""
    each = gradients.view(*present.shape, *gradients.shape[1:])
    kept = torch.where(present.view(*present.shape, *[1] * (gradients.dim() - 1)), each, torch.zeros_like(each))
    counts = present.sum(dim=1).clamp_min(1).to(gradients.dtype)
    return kept.sum(dim=1) / counts.view(-1, *[1] * (gradients.dim() - 1))


def train_dp_sgd(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    event: PoissonGaussian,
    *,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    noise: NoiseSource,
    units: torch.Tensor | None = None,
    class_weights: torch.Tensor | None = None,
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
        units: int64 (units, m), on the same device: which records each privacy unit contributes, -1 for none; each
            record is a unit of its own by default.
        class_weights: float (classes,), on the same device: factor of the loss of a class's records, 1 by default. A
            unit's gradient is clipped afterwards, so that weights change nothing of what the call costs.
        physical_batch: records whose gradients are held at once, to begin with.

    Raises:
        PrivacyError: the model has a layer that is not covered.
        MemoryLimitError: the gradient of a single record does not fit.
    """
    check_layers(model)
    if units is None:
        units = torch.arange(len(labels), device=labels.device)[:, None]
    wrapped = GradSampleModule(model, loss_reduction="sum")
    try:
        stepper = _SiteOptimizer(optimizer(list(model.parameters())), event, len(units), noise.child("gradients"))
        samples = noise.child("samples")
        physical = PhysicalBatch(max(1, physical_batch // units.shape[1]))
        wrapped.train()
        for _ in range(event.steps):
            chosen = torch.from_numpy(samples.poisson_sample(len(units), event.sampling_rate)).to(images.device)
            _sum_clipped_gradients(wrapped, stepper, images, labels, units[chosen], class_weights, physical)
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
    units: torch.Tensor,
    class_weights: torch.Tensor | None,
    physical: PhysicalBatch,
) -> None:
    """Write the sum of the units' clipped gradients into every parameter's `summed_grad`; zero if there is none."""

    def clear() -> None:
        _forget_unfinished_pass(model)
        stepper.zero_grad(set_to_none=True)
        for parameter in stepper.params:
            parameter.summed_grad = torch.zeros_like(parameter, dtype=torch.float64)

    def add(part: slice) -> None:
        # A unit fills m places, whatever it has: how a record's gradient is rounded depends on how many are computed
        # beside it, and weights of an attacker's choice make that as large as the gradient. So the number of a unit's
        # records must not move the others' places.
        chosen = units[part]
        present = chosen >= 0
        records = torch.where(present, chosen, chosen[:, :1]).reshape(-1)
        logits = model(images[records])
        _backward(nn.functional.cross_entropy(logits, labels[records], weight=class_weights, reduction="sum"))
        stepper.clip_and_accumulate(present)

    clear()
    physical.each(len(units), add, restart=clear)


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
