"""sum_u clip(g_u; C): clipped gradients of privacy units, added up, in one backward pass a part.

A layer's gradient for unit u is a product of what went into it, a, and of the loss' gradient d at its output, summed
over the unit's rows (its records, their copies, and the positions of an image):

    Linear       g_u = sum_r d_r a_r^T
    Conv2d       g_u = sum_p d_p (patch of a at p)^T
    GroupNorm    g_u = sum_p d_p * normalised a_p

Hooks on the layers catch a and d. Weights ask autograd for nothing, so a pass computes no gradient of a weight or of
the data. A unit's records are averaged by their losses, before the pass, which costs nothing.

**Why no weights, however hostile, break the clip.** Weights may make a and d huge and let them cancel, so a norm that
is not of the very numbers that are added up bounds nothing. Two forms are used:

- *Products*: g_u is held as it was computed. The norm, taken in float64, and the sum, added up in float64, are of the
  numbers held: however they were rounded, the unit's share is at most C (1 - margin) (1 + 2^-53 n) long, for n weights.
- *Factors*, where a linear layer has few rows a unit: ||g_u||^2 = sum_rs (a_r . a_s)(d_r . d_s), and sum_u f_u g_u is
  one product of matrices, both in float64, and g_u is never held. With one row, that is ||a||^2 ||d||^2, where nothing
  cancels. With several, let S = sum_r ||a_r|| ||d_r||. Float64 rounds the squared norm by less than
  2^-52 (inputs + outputs + rows^2) S^2, so 2^-30 S^2 is added to it: the norm errs upwards, and f_u S <= 2^15 C. A pass
  over U units and R rows then adds up with an error below 2^-53 R U 2^15 C, which `_MOST_ROWS_TIMES_UNITS` keeps under
  a fifth of the margin, and the errors of other passes do not depend on the unit.

A unit with a gradient that is not finite, or longer than `MAX_NORM`, counts as zero: it is replaced, not multiplied.

References:
    Goodfellow: Efficient per-example gradient computations, arXiv 1510.01799.
    Rochette, Manoel, Tramel: Efficient per-example gradient computations in convolutional neural networks,
    arXiv 1912.06015.
    Li, Tramèr, Liang, Hashimoto: Large language models can be strong differentially private learners, arXiv 2110.05679.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import torch
from torch import nn

from cadp_fl.errors import PrivacyError
from cadp_fl.privacy.clipping import clip_factors, is_clippable

__all__ = ["GRADIENT_LAYERS", "ClippedGradients", "Factors", "squared_norms"]

GRADIENT_LAYERS = (nn.Linear, nn.Conv2d, nn.GroupNorm)
"""Layers whose weights can be trained. Others may take part if they have none to train."""

_SLACK = 2.0**-30
_MOST_ROWS_OF_A_UNIT, _MOST_ROWS_TIMES_UNITS = 2**10, 2**19


@dataclass
class _Product:
    """A parameter's gradients, (units, ...), and how their sum becomes of the parameter's shape."""

    gradients: torch.Tensor
    shaped: Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Factors:
    """A linear weight's gradients, sum_r d_r a_r^T: a (units, rows, inputs) and d (units, rows, outputs), float64."""

    inputs: torch.Tensor
    outputs: torch.Tensor


@dataclass
class _Pass:
    """What one forward and backward pass over some units has given so far."""

    units: int
    rows: int
    calls: Counter[torch.Tensor] = field(default_factory=Counter)
    products: dict[torch.Tensor, _Product] = field(default_factory=dict)
    factors: dict[torch.Tensor, Factors] = field(default_factory=dict)


class ClippedGradients:
    """Adds up clipped gradients of a model's trainable parameters, inside of a `with` block.

    In the block the parameters do not require gradients. Every pass of the model is to go through `add`.

    Args:
        model: its trainable parameters belong to `GRADIENT_LAYERS` and all of its layers treat each record by itself,
            which is not checked here.
        clip_norm: C, above zero.

    Attributes:
        parameters: that are trained, in the model's order.
        sums: of each of them, float64, in its shape.
    """

    def __init__(self, model: nn.Module, clip_norm: float) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.sums = [torch.zeros_like(each, dtype=torch.float64) for each in self.parameters]
        self._model, self._clip_norm = model, clip_norm
        self._sum_of: dict[torch.Tensor, torch.Tensor] = dict(zip(self.parameters, self.sums, strict=True))
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._pass: _Pass | None = None
        self._buffers: dict[torch.Tensor, torch.Tensor] = {}
        self._scratch = torch.empty(0, dtype=torch.float64)

    def __enter__(self) -> Self:
        for layer in self._model.modules():
            if type(layer) in GRADIENT_LAYERS and any(each in self._sum_of for each in layer.parameters(False)):
                self._hooks.append(layer.register_forward_hook(self._keep))
        for parameter in self.parameters:
            parameter.requires_grad_(False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self._buffers.clear()
        self._scratch = self._scratch.new_empty(0)

    def clear(self) -> None:
        """Set the sums to zero."""
        for each in self.sums:
            each.zero_()

    def restart(self) -> None:
        """Set the sums to zero after a pass that ran out of memory, and give back what is held."""
        self._pass = None
        self._buffers.clear()
        self._scratch = self._scratch.new_empty(0)
        self.clear()

    def add(self, losses: Callable[[], torch.Tensor], present: torch.Tensor) -> None:
        """Add sum_u clip(g_u; C) to the sums, where g_u is the gradient of the mean loss of what is present of a unit.

        Args:
            losses: passes units times rows records through the model, a unit's side by side; returns (units * rows,).
            present: bool, (units, rows); what is not present counts for nothing, but keeps its place.

        Raises:
            PrivacyError: losses are not one a record, or a layer does not treat records as the first dimension.
        """
        self._pass = _Pass(*present.shape)
        each = losses()
        if each.shape != (present.numel(),):
            raise PrivacyError(
                f"A loss under DP-SGD is a number a record, ({present.numel()},). Found a tensor of "
                f"{tuple(each.shape)}; do not average over the batch."
            )
        counts = present.sum(dim=1, keepdim=True).clamp_min(1)
        weighted = each.view(present.shape) / counts
        torch.where(present, weighted, torch.zeros_like(weighted)).sum().backward()
        self._finish(self._pass)
        self._pass = None

    def _keep(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """Keep what went in until the gradient at what came out is there."""
        current = self._pass
        if current is None:
            return
        if len(output) != current.units * current.rows:
            raise PrivacyError(
                f"Under DP-SGD the first dimension of a layer's input is the batch. {type(layer).__name__} got "
                f"{len(output)} rows for {current.units * current.rows} records."
            )
        current.calls.update(layer.parameters(recurse=False))
        kept, version = inputs[0].detach(), inputs[0]._version  # noqa: SLF001
        if not output.requires_grad:
            output.requires_grad_()

        def absorb(gradient: torch.Tensor) -> None:
            if kept._version != version:  # noqa: SLF001
                raise PrivacyError(
                    f"What went into a layer stays as it was until its gradient is there. The input of "
                    f"{type(layer).__name__} was changed in place; use the operation that returns a new tensor."
                )
            self._absorb(layer, kept, gradient, current)

        output.register_hook(absorb)

    def _absorb(self, layer: nn.Module, inputs: torch.Tensor, gradient: torch.Tensor, current: _Pass) -> None:
        """Note the gradients of a layer's weight and bias, of its input and of the gradient at its output."""
        assert isinstance(layer, GRADIENT_LAYERS)
        if layer.weight in self._sum_of:
            if isinstance(layer, nn.Linear):
                self._absorb_linear(layer, inputs, gradient, current)
            elif isinstance(layer, nn.Conv2d):
                self._absorb_convolution(layer, inputs, gradient, current)
            else:
                normal = nn.functional.group_norm(inputs, layer.num_groups, eps=layer.eps)
                self._note(layer.weight, _over_positions(gradient * normal, current.units, 1), current)
        if layer.bias is not None and layer.bias in self._sum_of:
            channels = gradient.dim() - 1 if isinstance(layer, nn.Linear) else 1
            self._note(layer.bias, _over_positions(gradient, current.units, channels), current)

    def _absorb_linear(self, layer: nn.Linear, inputs: torch.Tensor, gradient: torch.Tensor, current: _Pass) -> None:
        a = inputs.reshape(current.units, -1, layer.in_features)
        d = gradient.reshape(current.units, -1, layer.out_features)
        rows = a.shape[1]
        few = 2 * rows**2 <= layer.weight.numel() and rows <= _MOST_ROWS_OF_A_UNIT
        exact = rows == 1 or rows * current.units**2 <= _MOST_ROWS_TIMES_UNITS
        if current.calls[layer.weight] == 1 and few and exact:
            # Copies, since they are scaled in place, and another layer may have been given the same gradient.
            current.factors[layer.weight] = Factors(*(each.to(torch.float64, copy=True) for each in (a, d)))
        else:
            self._note_product(layer.weight, d.transpose(1, 2), a, current, lambda total: total.view_as(layer.weight))

    def _absorb_convolution(
        self, layer: nn.Conv2d, inputs: torch.Tensor, gradient: torch.Tensor, current: _Pass
    ) -> None:
        weight, groups = layer.weight, layer.groups
        outputs, each, *kernel = weight.shape
        before, after = _padding(layer)
        around = [step * (side - 1) - pad for step, side, pad in zip(layer.dilation, kernel, before, strict=True)]
        reversible = layer.stride == (1, 1) and groups == 1 and before == after and min(around) >= 0
        if reversible and outputs < each and current.calls[weight] == 1:
            # Patches of d around every position of a, kernel reversed: fewer numbers than patches of a.
            patches = _patches(
                x=gradient,
                units=current.units,
                kernel=kernel,
                stride=layer.stride,
                dilation=layer.dilation,
                before=around,
                after=around,
                groups=1,
            )
            rows = _rows(inputs, current.units, 1)

            def shaped(total: torch.Tensor) -> torch.Tensor:
                return total.view(outputs, *kernel, each).flip(1, 2).permute(0, 3, 1, 2)

        else:
            patches = _patches(
                x=inputs,
                units=current.units,
                kernel=kernel,
                stride=layer.stride,
                dilation=layer.dilation,
                before=before,
                after=after,
                groups=groups,
            )
            rows = _rows(gradient, current.units, groups)

            def shaped(total: torch.Tensor) -> torch.Tensor:
                return total.view(groups, each, *kernel, -1).permute(0, 4, 1, 2, 3).reshape(weight.shape)

        self._note_product(weight, patches, rows, current, shaped)

    def _note_product(
        self,
        parameter: torch.Tensor,
        left: torch.Tensor,
        right: torch.Tensor,
        current: _Pass,
        shaped: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Note the products of (units * groups, n, rows) and (units * groups, rows, m) as a parameter's gradients."""
        if parameter in current.products:
            self._note(parameter, torch.bmm(left, right).view(current.units, -1), current, shaped)
            return
        shape = (len(left), left.shape[1], right.shape[2])
        buffer = self._buffers.get(parameter)
        if buffer is None or buffer.numel() < math.prod(shape):
            buffer = self._buffers[parameter] = left.new_empty(math.prod(shape))
        product = torch.bmm(left, right, out=buffer[: math.prod(shape)].view(shape))
        self._note(parameter, product.view(current.units, -1), current, shaped)

    def _note(
        self,
        parameter: torch.Tensor,
        gradients: torch.Tensor,
        current: _Pass,
        shaped: Callable[[torch.Tensor], torch.Tensor] = lambda total: total,
    ) -> None:
        """Add gradients (units, ...) to those that a parameter has from another call of its layer."""
        if parameter in current.products:
            current.products[parameter].gradients += gradients
        else:
            current.products[parameter] = _Product(gradients, shaped)

    def _finish(self, current: _Pass) -> None:
        """Clip and add the gradients of a finished pass."""
        squares = [self._in_float64(each.gradients).square_().sum(dim=1) for each in current.products.values()]
        squares += [squared_norms(each) for each in current.factors.values()]
        if not squares:
            return
        norms = torch.stack(squares).sum(dim=0).sqrt()
        factors = clip_factors(norms, self._clip_norm)
        dropped = torch.nonzero(~is_clippable(norms)).flatten()
        for parameter, each in current.products.items():
            gradients = self._in_float64(each.gradients).index_fill_(0, dropped, 0.0)
            self._sum_of[parameter] += each.shaped(factors @ gradients)
        for parameter, pair in current.factors.items():
            inputs = pair.inputs.index_fill_(0, dropped, 0.0).flatten(0, 1)
            outputs = pair.outputs.index_fill_(0, dropped, 0.0).mul_(factors[:, None, None]).flatten(0, 1)
            self._sum_of[parameter].addmm_(outputs.T, inputs)

    def _in_float64(self, gradients: torch.Tensor) -> torch.Tensor:
        """Return gradients (units, ...) as (units, n) in float64, in memory that the next call uses again.

        Fresh memory costs ten times what the arithmetic does.
        """
        if self._scratch.numel() < gradients.numel() or self._scratch.device != gradients.device:
            self._scratch = torch.empty(gradients.numel(), dtype=torch.float64, device=gradients.device)
        wide: torch.Tensor = self._scratch[: gradients.numel()].view(len(gradients), -1)
        return wide.copy_(gradients.flatten(1))


def squared_norms(pair: Factors) -> torch.Tensor:
    """Return upper bounds of ||sum_r d_r a_r^T||^2, float64 (units,), which float64 rounding does not undercut."""
    a, d = pair.inputs, pair.outputs
    if a.shape[1] == 1:
        return a.square().sum(dim=(1, 2)) * d.square().sum(dim=(1, 2))
    gram = (torch.bmm(a, a.transpose(1, 2)) * torch.bmm(d, d.transpose(1, 2))).sum(dim=(1, 2))
    lengths = (torch.linalg.vector_norm(a, dim=2) * torch.linalg.vector_norm(d, dim=2)).sum(dim=1)
    bounds: torch.Tensor = gram.clamp_min(0.0) + _SLACK * lengths.square()
    return bounds


def _padding(layer: nn.Conv2d) -> tuple[list[int], list[int]]:
    """Return the zeros that a convolution puts before and after (rows, columns)."""
    last_first = layer._reversed_padding_repeated_twice  # noqa: SLF001
    return [last_first[2], last_first[0]], [last_first[3], last_first[1]]


def _patches(
    x: torch.Tensor,
    units: int,
    kernel: list[int],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    before: list[int],
    after: list[int],
    groups: int,
) -> torch.Tensor:
    """Return what a kernel sees at every position, (units * groups, channels / groups * kernel, rows * positions).

    Args:
        x: (units * rows, channels, height, width).
        before: zeros above and to the left; `after`, below and to the right.
    """
    if any(before) or any(after):
        x = nn.functional.pad(x, (before[1], after[1], before[0], after[0]))
    batch, channels, *sides = x.shape
    of_batch, of_channel, *of_side = x.stride()
    positions = [
        (side - step * (length - 1) - 1) // jump + 1
        for side, step, length, jump in zip(sides, dilation, kernel, stride, strict=True)
    ]
    windows = x.as_strided(
        (units, groups, channels // groups, *kernel, batch // units, *positions),
        (
            of_batch * (batch // units),
            of_channel * (channels // groups),
            of_channel,
            *(step * each for step, each in zip(dilation, of_side, strict=True)),
            of_batch,
            *(jump * each for jump, each in zip(stride, of_side, strict=True)),
        ),
    )
    return windows.reshape(units * groups, channels // groups * math.prod(kernel), -1)


def _rows(x: torch.Tensor, units: int, groups: int) -> torch.Tensor:
    """Return (units * groups, rows * positions, channels / groups) of x (units * rows, channels, height, width)."""
    split = x.reshape(units, -1, groups, x.shape[1] // groups, *x.shape[2:])
    return split.permute(0, 2, 1, 4, 5, 3).reshape(units * groups, -1, x.shape[1] // groups)


def _over_positions(x: torch.Tensor, units: int, channels: int) -> torch.Tensor:
    """Return the sum over a unit's rows and all positions, (units, channels); `channels` is their dimension in x."""
    rows = x.movedim(channels, -1)
    return rows.reshape(units, -1, rows.shape[-1]).sum(dim=1)
