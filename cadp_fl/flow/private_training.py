"""Maximum likelihood under differential privacy: DP-SGD on -log2 p(x | y) / dims, a loss of each record by itself."""

from collections.abc import Collection

import torch
from torch import nn

from cadp_fl.data.codec import Codec
from cadp_fl.errors import ConfigError
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.conditions import condition_of
from cadp_fl.flow.per_record import PER_RECORD_LAYERS
from cadp_fl.flow.training import Progress, bits_of, training_alone
from cadp_fl.privacy.dpsgd import train_dp_sgd
from cadp_fl.privacy.events import PoissonGaussian
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.schedule import cosine

__all__ = ["train_flow_privately"]


def train_flow_privately(
    flow: ConditionalFlow,
    records: torch.Tensor,
    labels: torch.Tensor,
    event: PoissonGaussian,
    *,
    units: torch.Tensor,
    copies: int,
    learning_rate: float,
    codec: Codec,
    progress: Progress,
    noise: NoiseSource,
    frozen: Collection[str] = (),
) -> None:
    """Train in place for one round of DP-SGD. Nothing but the weights comes back, no loss above all.

    Args:
        records: as they are stored, (records, ...), on the flow's device.
        labels: of the condition, (records,) or (records, conditions); see `condition_of`.
        event: what the round costs.
        units: int64 (units, m), on the same device: which records each privacy unit contributes, -1 for none.
        copies: K; each record is dequantized K times, and its gradient is the mean of theirs.
        learning_rate: Adam's step size at its peak.
        codec: of the records.
        progress: where the round stands in the whole of training.
        noise: of this round alone.
        frozen: names of parameters that stay as they are.

    Raises:
        ConfigError: no part is left to train.
        PrivacyError: a layer mixes records, or keeps something of them.
    """
    offsets = torch.Generator(records.device).manual_seed(int(noise.child("offsets").uniform(1)[0] * 2**52))
    trained = [each for name, each in flow.named_parameters() if each.requires_grad and name not in frozen]
    if not trained:
        raise ConfigError(
            "DP-SGD trains some part of a flow. Every one is frozen; leave one out of flow.pretrained.freeze, give the "
            "flow blocks, or set flow.privacy: none."
        )

    def loss(_: nn.Module, drawn: torch.Tensor) -> torch.Tensor:
        offset = torch.rand(len(drawn), *flow.shape, generator=offsets, device=records.device)
        x = codec.to_unit(records[drawn], offset)
        return bits_of(flow, x, condition_of(labels[drawn], flow.conditions))

    with training_alone(flow, trained):
        train_dp_sgd(
            flow,
            loss,
            event,
            units=units,
            optimizer=lambda parameters: torch.optim.Adam(parameters, lr=learning_rate, betas=(0.9, 0.99)),
            noise=noise,
            copies=copies,
            schedule=lambda position: cosine((progress.index + position) / progress.rounds),
            covered=PER_RECORD_LAYERS,
        )
