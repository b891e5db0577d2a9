"""A flow on disk: its weights, all that is needed to build it again, and what it was trained on."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError

from cadp_fl.config import FlowConfig
from cadp_fl.data.codec import input_shape
from cadp_fl.data.schema import Schema
from cadp_fl.errors import ConfigError, DataError
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.storage import check_shapes, count_tensors, load_weights, read_description, save_weights
from cadp_fl.weights import get_weights, set_weights, structure_sha256, weights_sha256

__all__ = [
    "ARCHITECTURE",
    "FlowCard",
    "check_fits_records",
    "check_same_flow",
    "flow_sha256",
    "load_flow",
    "read_card",
    "save_flow",
]

ARCHITECTURE = ("scales", "coupling", "downsampling", "permutation", "dense", "clamp", "input_scale")
"""The fields of a flow's config that say what it is, and not how it is trained."""

WARM_ARCHITECTURE = (*ARCHITECTURE, "warm_start", "front_end")
"""Those of a warm-started flow; the hash of any other does not change with them."""

TrainedOn = Literal["public", "private"]
_TRAINED_ON: dict[str, TrainedOn] = {"public": "public", "private": "private"}


@dataclass(frozen=True)
class FlowCard:
    """What a stored flow is.

    Attributes:
        config: its architecture.
        dataset: schema of the records that it was trained on.
        seed: of its fixed parts.
        trained_on: `public` if no private record had any part in it, by declaration of whoever trained it.
        noise: where the privacy noise of its training came from; empty if there was none.
    """

    config: FlowConfig
    dataset: Schema
    seed: int
    trained_on: TrainedOn
    noise: str = ""

    def build(self) -> ConditionalFlow:
        """Return a new flow of this architecture."""
        return ConditionalFlow(self.config, input_shape(self.dataset), self.dataset.conditions, seed=self.seed)


def flow_sha256(flow: ConditionalFlow) -> str:
    """Return the hash of all that makes a flow the function that it is: architecture, fixed parts and weights."""
    digest = hashlib.sha256(_architecture_json(flow.architecture).encode())
    for part in (structure_sha256(flow), weights_sha256(get_weights(flow))):
        digest.update(part.encode())
    return digest.hexdigest()


def _architecture_json(config: FlowConfig) -> str:
    return config.model_dump_json(include=set(WARM_ARCHITECTURE if config.is_warm else ARCHITECTURE))


def save_flow(path: Path, flow: ConditionalFlow, card: FlowCard) -> None:
    """Write a flow under a temporary name, and rename it when it is whole."""
    description = {
        "architecture": _architecture_json(card.config),
        "dataset": card.dataset.model_dump_json(),
        "seed": str(card.seed),
        "trained_on": card.trained_on,
        "noise": card.noise,
    }
    save_weights(path, get_weights(flow), kind="flow", description=description)


def read_card(path: Path) -> FlowCard:
    """Return what a stored flow is, without its weights.

    Raises:
        DataError: the file is missing, or no flow that this library stored.
    """
    described = read_description(path, kind="flow")
    try:
        return FlowCard(
            FlowConfig.model_validate_json(described["architecture"]),
            Schema.model_validate_json(described["dataset"]),
            int(described["seed"]),
            _TRAINED_ON[described["trained_on"]],
            described.get("noise", ""),
        )
    except (ValidationError, KeyError, ValueError) as error:
        raise DataError(f"A stored flow says how to build it. '{path}' does not; train it again.") from error


def load_flow(path: Path) -> tuple[ConditionalFlow, FlowCard]:
    """Return a stored flow, on the CPU, and what it is.

    Raises:
        DataError: the file is missing or damaged, or its tensors are not those of its architecture.
    """
    card = read_card(path)
    _check_size(path, card)
    flow = card.build()
    set_weights(flow, load_weights(path, get_weights(flow)))
    return flow, card


def _check_size(path: Path, card: FlowCard) -> None:
    """Check that a stored flow is as large as its description says, before memory is taken for it.

    Raises:
        DataError: it is not, or the description is of no flow.
    """
    scales = () if card.config.is_warm else card.config.scales
    blocks = card.config.dense.blocks + sum(scale.blocks for scale in scales)
    if blocks > (tensors := count_tensors(path)):
        raise DataError(
            f"A coupling block has tensors. '{path}' holds {tensors} and says that it has {blocks} blocks; train it "
            "again."
        )
    try:
        with torch.device("meta"):
            flow = card.build()
    except (RuntimeError, TypeError, OverflowError) as error:
        raise DataError(
            f"A stored flow fits into memory. '{path}' describes one that cannot; train it again."
        ) from error
    trained = {name: tuple(each.shape) for name, each in flow.named_parameters() if each.requires_grad}
    check_shapes(path, trained)


def check_same_flow(config: FlowConfig, dataset: Schema, card: FlowCard) -> None:
    """Check that a stored flow is the one that a study describes.

    Raises:
        ConfigError: it is not; the message names the first field that differs.
    """
    for field in WARM_ARCHITECTURE:
        ours, stored = (each.model_dump(mode="json")[field] for each in (config, card.config))
        if ours != stored:
            raise ConfigError(
                f"A pretrained flow has the study's architecture. flow.{field} is {ours} in the study and {stored} in "
                "the stored flow; make them agree."
            )
    check_fits_records(dataset, card)


def check_fits_records(dataset: Schema, card: FlowCard) -> None:
    """Check that a stored flow can encode some records.

    Raises:
        ConfigError: it cannot; the message names the first thing that differs.
    """
    ours, stored = dataset.attributes, card.dataset.attributes
    for name, mine, theirs in (
        ("kind", dataset.kind, card.dataset.kind),
        ("shape (channels, height, width)", dataset.shape, card.dataset.shape),
        ("number of attributes", len(ours), len(stored)),
        *((f"attribute {column}", *names) for column, names in enumerate(zip(ours, stored, strict=False))),
        ("number of classes", dataset.conditions, card.dataset.conditions),  # the same attributes: of whatever classes
        ("number of grey levels", dataset.levels, card.dataset.levels),
        ("columns", dataset.columns, card.dataset.columns),
    ):
        if mine != theirs:
            raise ConfigError(
                f"A pretrained flow fits the records. Their {name} is {mine}, that of the stored one {theirs}; "
                "pretrain it on records of the same form."
            )
