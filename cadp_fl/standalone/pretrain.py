"""A flow of public records: the study's flow, trained in one place by maximum likelihood."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cadp_fl.config import StudyConfig
from cadp_fl.data.codec import codec_of
from cadp_fl.data.schema import Schema
from cadp_fl.data.sources import load_source
from cadp_fl.device import resolve_device
from cadp_fl.errors import ConfigError
from cadp_fl.federated.recorder import Watcher
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.storage import FlowCard, check_same_flow, flow_sha256, load_flow, save_flow
from cadp_fl.flow.training import Progress, train_flow
from cadp_fl.outputs import check_new, folder_above
from cadp_fl.weights import get_weights

__all__ = ["pretrain"]

PHASE = "pretrain"


def pretrain(study: StudyConfig, output: Path, *, watch: Watcher) -> dict[str, Any]:
    """Train a study's flow on all training records of its data source, store it as public, and return what it is.

    It takes `flow.training.rounds` times `flow.training.local_epochs` passes, under one cosine. Whoever calls this
    declares the records public.

    Raises:
        InputError: the study trains no flow, starts from one that is not public, or the file cannot be written.
        TrainingError: the loss became infinite or NaN.
    """
    _check_trains(study)
    check_new(output, "A stored flow")
    device = resolve_device(study.device)
    torch.set_num_threads(study.sites.cpus_per_client)
    train = load_source(study.data).train
    flow, card = _start(study, train.schema)
    frozen = flow.frozen_names(study.flow.freeze)
    if len(frozen) == len(get_weights(flow)):
        raise _trains_nothing("flow.pretrained.freeze that names every part")
    config = study.flow.training
    epochs = config.rounds * config.local_epochs
    watch({"step": "phases", "phases": {PHASE: epochs}, "sites": 0})
    bits: list[float] = []

    def on_epoch(epoch: int, loss: float) -> None:
        bits.append(loss)
        watch({"step": "round", "phase": PHASE, "round": epoch, "of": epochs, "bits_per_dim": loss})

    train_flow(
        flow.to(device),
        torch.from_numpy(train.records).to(device),
        torch.from_numpy(train.condition).to(device),
        config.model_copy(update={"local_epochs": epochs}),
        codec=codec_of(train.schema),
        progress=Progress(0, 1),
        generator=torch.Generator(device=device).manual_seed(study.seed),
        frozen=frozen,
        on_epoch=on_epoch,
    )
    with folder_above(output):
        save_flow(output, flow, card)
    return {
        "flow": str(output),
        "sha256": flow_sha256(flow),
        "trained_on": card.trained_on,
        "dataset": card.dataset.name,
        "records": len(train),
        "epochs": epochs,
        "bits_per_dim": bits[-1],
    }


def _check_trains(study: StudyConfig) -> None:
    if study.flow.training.rounds == 0:
        raise _trains_nothing("flow.training.rounds 0")
    if study.flow.is_fixed:
        raise _trains_nothing("flow.pretrained.freeze [all]")


def _trains_nothing(found: str) -> ConfigError:
    return ConfigError(
        f"Pretraining trains a flow. Found {found}, which leaves nothing to train; change it with --set."
    )


def _start(study: StudyConfig, schema: Schema) -> tuple[ConditionalFlow, FlowCard]:
    """Return the flow to begin with: new weights, or the study's pretrained flow if that one is public.

    Raises:
        ConfigError: the study's pretrained flow is not public, or not of the study's architecture.
    """
    pretrained = study.flow.pretrained
    if pretrained is None:
        card = FlowCard(study.flow.architecture(), schema, study.seed, "public")
        return card.build(), card
    flow, card = load_flow(pretrained.path)
    if "private" in (pretrained.trained_on, card.trained_on):
        says = "the file" if card.trained_on == "private" else "flow.pretrained.trained_on"
        raise ConfigError(
            "A flow that is made from one of private records is not public. "
            f"'{pretrained.path}' was trained on private records, as {says} says; start from a public one, or without "
            "flow.pretrained."
        )
    check_same_flow(study.flow, schema, card)
    return flow, replace(card, dataset=schema)
