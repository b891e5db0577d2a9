"""The flow as a classifier: argmax_y p(x | y), exact, with no sample drawn.

A conditional flow gives the density of a record under every class. With equally likely classes, Bayes' rule is then a
classifier, and a function of the flow alone: it costs nothing beside it.

References:
    Ardizzone, Mackowiak, Rother, Köthe: Training normalizing flows with the information bottleneck for competitive
    generative classification, arXiv 2001.06448.
"""

import torch
from torch import nn

from cadp_fl.config import FlowConfig
from cadp_fl.data.codec import Codec, codec_of, input_shape
from cadp_fl.data.schema import Schema
from cadp_fl.errors import ConfigError
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.conditions import condition_of

__all__ = ["FlowBayes"]


class FlowBayes(nn.Module):
    """x -> log p(x | y) of every class y, which are the logits of a classifier.

    Args:
        flow: its condition is the class, one-hot.
        codec: of the records.
        ridge: rho, of a warm-started flow: the covariances of its affine layer get that much of their mean variance
            more. 0 for the flow's own densities.
    """

    def __init__(self, flow: ConditionalFlow, *, codec: Codec, ridge: float = 0.0) -> None:
        super().__init__()
        self.flow = flow
        self._codec = codec
        self._ridge = ridge

    @classmethod
    def of(cls, config: FlowConfig, schema: Schema, *, seed: int, ridge: float = 0.0) -> "FlowBayes":
        """Return the rule of a new flow, to be given weights.

        Raises:
            ConfigError: the condition is not the class alone.
        """
        if schema.attributes:
            raise ConfigError(
                "Bayes' rule needs a flow whose condition is the class alone. These records have "
                f"{len(schema.attributes)} attributes; leave the attributes out."
            )
        flow = ConditionalFlow(config, input_shape(schema), len(schema.classes), seed=seed)
        return cls(flow, codec=codec_of(schema), ridge=ridge)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return log p(x | y), (batch, classes), with x in the middle of each level.

        Args:
            inputs: (batch, ...), in [-0.5, 0.5] as classifiers take them.
        """
        x = self._codec.of_inputs(inputs)
        if self.flow.coordinates is not None and self.flow.affine is not None:
            return self._of_coordinates(self.flow.coordinates(x)[0], *self.flow.affine.smoothed(self._ridge))
        return torch.stack([self.flow.log_prob(x, condition) for condition in self._conditions(x)], dim=1)

    def _of_coordinates(self, u: torch.Tensor, means: torch.Tensor, whitening: torch.Tensor) -> torch.Tensor:
        """Return log p(u | y) but for a constant, (batch, classes).

        The affine layer is the flow's with a ridge, and the blocks above it are the flow's own. What a warm-started
        flow's other coordinates add does not depend on y.
        """
        logits = []
        for mean, matrix, condition in zip(means, whitening, self._conditions(u), strict=True):
            white = (u.double() - mean) @ matrix.T
            z, log_det = self.flow.dense(white.to(u.dtype), condition)
            logits.append(matrix.diagonal().abs().log().sum() + log_det - 0.5 * z.square().sum(dim=1))
        return torch.stack(logits, dim=1).to(u.dtype)

    def _conditions(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the condition of every class for a batch."""
        classes = self.flow.conditions
        each = torch.arange(classes, device=x.device)
        return [condition_of(label.repeat(len(x)), classes, x.dtype) for label in each]
