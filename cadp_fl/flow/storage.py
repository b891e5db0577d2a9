"""A flow on disk: its weights as safetensors, with all that is needed to build it again, and what it was trained on.

A reader trusts none of it: the architecture is parsed like a config, and every tensor's shape and type is compared with
what that architecture has before it is read.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cadp_fl.config import FlowConfig
from cadp_fl.data.schema import Schema
from cadp_fl.errors import ConfigError, DataError
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.weights import get_weights, set_weights

__all__ = ["ARCHITECTURE", "FlowCard", "check_same_flow", "load_flow", "read_card", "save_flow"]

ARCHITECTURE = ("scales", "coupling", "downsampling", "permutation", "dense", "clamp", "input_scale")
"""The fields of a flow's config that say what it is, and not how it is trained."""

MAX_CARD_CHARACTERS = 1 << 20

TrainedOn = Literal["public", "private"]


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
        return ConditionalFlow(self.config, self.dataset.shape, len(self.dataset.classes), seed=self.seed)


def save_flow(path: Path, flow: ConditionalFlow, card: FlowCard) -> None:
    """Write a flow under a temporary name, and rename it when it is whole."""
    metadata = {
        "format": "cadp-fl flow 1",
        "architecture": card.config.model_dump_json(include=set(ARCHITECTURE)),
        "dataset": card.dataset.model_dump_json(),
        "seed": str(card.seed),
        "trained_on": card.trained_on,
        "noise": card.noise,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    save_file(get_weights(flow), temporary, metadata)
    temporary.replace(path)


def read_card(path: Path) -> FlowCard:
    """Return what a stored flow is, without its weights.

    Raises:
        DataError: the file is missing, or no flow that this library stored.
    """
    if not path.is_file():
        raise DataError(f"A stored flow is a safetensors file. Found none at '{path}'; check the path.")
    try:
        with safe_open(path, framework="numpy") as stored:
            return _parse(stored.metadata() or {})
    except (SafetensorError, OSError, ValidationError, KeyError, ValueError) as error:
        raise DataError(
            f"A stored flow is a safetensors file of cadp-fl pretrain or of a run. '{path}' is not: "
            f"{str(error).splitlines()[0]}; make it again."
        ) from error


def load_flow(path: Path) -> tuple[ConditionalFlow, FlowCard]:
    """Return a stored flow, on the CPU, and what it is.

    Raises:
        DataError: the file is missing or damaged, or its tensors are not those of its architecture.
    """
    card = read_card(path)
    flow = card.build()
    expected = get_weights(flow)
    try:
        with safe_open(path, framework="numpy") as stored:
            _check_shapes(stored, expected)
            set_weights(flow, {name: stored.get_tensor(name) for name in expected})
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"A stored flow holds the tensors of its architecture. '{path}' does not: {error}.") from error
    return flow, card


def check_same_flow(config: FlowConfig, dataset: Schema, card: FlowCard, path: Path) -> None:
    """Check that a stored flow is the one that a study describes.

    Raises:
        ConfigError: it is not; the message names the first field that differs.
    """
    for field in ARCHITECTURE:
        ours, stored = (each.model_dump(mode="json")[field] for each in (config, card.config))
        if ours != stored:
            raise ConfigError(
                f"A pretrained flow has the study's architecture. flow.{field} is {ours} in the study and {stored} in "
                f"'{path}'; make them agree."
            )
    for name, mine, theirs in (
        ("shape (channels, height, width)", dataset.shape, card.dataset.shape),
        ("number of classes", len(dataset.classes), len(card.dataset.classes)),
        ("number of grey levels", dataset.levels, card.dataset.levels),
    ):
        if mine != theirs:
            raise ConfigError(
                f"A pretrained flow fits the study's records. Their {name} is {mine}, that of '{path}' is {theirs}; "
                "pretrain it on records of the same form."
            )


def _parse(metadata: Mapping[str, str]) -> FlowCard:
    if metadata.get("format") != "cadp-fl flow 1":
        raise ValueError("it does not say that it holds a flow")
    if sum(len(value) for value in metadata.values()) > MAX_CARD_CHARACTERS:
        raise ValueError(f"its description is longer than {MAX_CARD_CHARACTERS} characters")
    trained_on = metadata["trained_on"]
    if trained_on not in ("public", "private"):
        raise ValueError(f"trained_on is public or private, not '{trained_on}'")
    return FlowCard(
        FlowConfig.model_validate(json.loads(metadata["architecture"])),
        Schema.model_validate_json(metadata["dataset"]),
        int(metadata["seed"]),
        "public" if trained_on == "public" else "private",
        metadata.get("noise", ""),
    )


def _check_shapes(stored: "safe_open", expected: Mapping[str, np.ndarray]) -> None:
    """Compare names and shapes before a tensor is read."""
    if set(stored.keys()) != set(expected):
        raise ValueError(f"'{sorted(set(stored.keys()) ^ set(expected))[0]}' is on one side only")
    for name, array in expected.items():
        shape = tuple(stored.get_slice(name).get_shape())
        if shape != array.shape:
            raise ValueError(f"'{name}' has shape {shape}, not {array.shape}")
