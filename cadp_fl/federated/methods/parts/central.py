"""Training at the server: the central classifier, on what left the sites and on what a flow draws.

Both are post-processing of what has already left the sites, however many records are drawn and however long it takes.
"""

import math
from collections.abc import Iterable

import torch

from cadp_fl.classifier.models import QUADRATIC, build_classifier
from cadp_fl.classifier.quadratic import QuadraticDiscriminant
from cadp_fl.classifier.training import train_class_balanced
from cadp_fl.config import ClassifierConfig, StudyConfig
from cadp_fl.data.codec import Codec, codec_of, input_shape
from cadp_fl.data.schema import Schema
from cadp_fl.errors import ConfigError
from cadp_fl.federated.methods.base import PhaseCost, StudyRun, Trained, bytes_of, evaluate_at_sites
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.conditions import condition_of
from cadp_fl.weights import get_weights, set_weights

__all__ = [
    "CHECKPOINTS",
    "central_classifier",
    "central_cost",
    "coordinates_of",
    "draw_coordinates",
    "draw_records",
    "fit_to_coordinates",
    "train_centrally",
]

CHECKPOINTS = 5
"""Evaluations of the central classifier over its training."""

_BATCH = 512


def central_classifier(study: StudyConfig, model: str | None) -> ClassifierConfig:
    """Return the classifier of a method that makes its flow within the budget.

    Args:
        model: as the method's settings name it; by default the quadratic discriminant on the flow's own coordinates,
            or the study's classifier if the flow has none.

    Raises:
        ConfigError: it is the discriminant, and the flow has no coordinates.
    """
    name = model or (QUADRATIC if study.flow.is_warm else study.classifier.model)
    if name == QUADRATIC and not study.flow.is_warm:
        raise ConfigError(
            f"The classifier {QUADRATIC} is fitted to the coordinates of a warm start. This study has none; give "
            "flow.warm_start: moments, or another classifier."
        )
    return study.classifier.model_copy(update={"model": name, "front_end": study.flow.front_end})


def central_cost(
    study: StudyConfig, config: ClassifierConfig, schema: Schema, *, method: str, records: int, fits: bool
) -> PhaseCost:
    """Return what the central phase of a method will take.

    Args:
        config: of the classifier.
        records: number that it is trained on.
        fits: whether it is fitted in closed form to coordinates of the flow.
    """
    model = bytes_of(build_classifier(config, input_shape(schema), len(schema.classes), seed=study.seed))
    if fits:
        return PhaseCost(
            phase=f"{method}/central", rounds=1, down=model, up=0, work="fit", records=records, classifier=config
        )
    central = config.central
    seen = central.epochs * math.ceil(records / central.batch_size) * central.batch_size
    return PhaseCost(
        phase=f"{method}/central",
        rounds=CHECKPOINTS,
        down=model,
        up=0,
        work="central",
        records=seen // CHECKPOINTS,
        classifier=config,
    )


@torch.no_grad()
def draw_records(
    flow: ConditionalFlow, schema: Schema, count: int, *, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return records x ~ p(x | y) of equally many of each class, as they are stored, (records, ...), and int64 labels.

    Args:
        flow: its condition is the class.
        schema: of the records.
        count: number of records; rounded up to as many of each class.
        generator: on the CPU, as the flow.
    """
    labels = _balanced(len(schema.classes), count)
    codec = codec_of(schema)
    drawn = [
        codec.from_unit(flow.sample(condition_of(part, len(schema.classes)), generator=generator))
        for part in labels.split(_BATCH)
    ]
    return torch.cat(drawn), labels


@torch.no_grad()
def draw_coordinates(
    flow: ConditionalFlow, count: int, *, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return coordinates u ~ p(u | y) of a warm-started flow, of equally many of each class: (records, dims) and int64.

    Those of real records are in the unit ball, so these are brought there.
    """
    labels = _balanced(flow.conditions, count)
    drawn = [
        flow.colour(torch.randn(len(part), flow.coarse_dims, generator=generator), condition_of(part, flow.conditions))
        for part in labels.split(_BATCH)
    ]
    return _in_unit_ball(torch.cat(drawn)), labels


@torch.no_grad()
def coordinates_of(
    flow: ConditionalFlow,
    records: Iterable[torch.Tensor],
    labels: torch.Tensor,
    codec: Codec,
    *,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return coordinates of released records: their images' own, and a descriptor drawn from p(descriptor | image, y).

    A release decodes to an image; that image's edges are not those of any record, but the flow knows which descriptors
    go with it.

    Args:
        records: as they are stored, (batch, ...) each, of all together.
        labels: int64 (records,), that the records left with.
    """
    assert flow.coordinates is not None, "a warm-started flow has them"
    assert flow.affine is not None, "a warm-started flow has one"
    kept, parts, start = flow.coordinates.front.record_dims, [], 0
    for batch in records:
        condition = condition_of(labels[start : start + len(batch)], flow.conditions)
        start += len(batch)
        white, _ = flow.affine(flow.coordinates(codec.to_unit(batch))[0], condition)
        white[:, kept:] = torch.randn(len(batch), white.shape[1] - kept, generator=generator)  # below the image's
        parts.append(flow.affine.inverse(white, condition))
    return _in_unit_ball(torch.cat(parts))


def fit_to_coordinates(
    run: StudyRun, config: ClassifierConfig, flow: ConditionalFlow, u: torch.Tensor, labels: torch.Tensor
) -> Trained:
    """Fit a quadratic discriminant to coordinates of a flow, and evaluate it at the sites."""
    assert flow.coordinates is not None, "a warm-started flow has them"
    phase, model = f"{run.method}/central", run.classifier(config)
    assert isinstance(model, QuadraticDiscriminant), "what is fitted to coordinates is one"
    set_weights(model.coordinates, get_weights(flow.coordinates))
    model.fit(u.to(run.device), labels.to(run.device), ridge=run.study.flow.moments.ridge)
    run.federation.recorder.round(phase, CHECKPOINTS, CHECKPOINTS)
    pooled, per_site = evaluate_at_sites(run, model, config, phase=f"{run.method}/evaluate")
    return Trained(model, config, pooled, per_site)


def train_centrally(run: StudyRun, config: ClassifierConfig, records: torch.Tensor, labels: torch.Tensor) -> Trained:
    """Train a classifier and evaluate it at the sites: at every checkpoint, or once with noise.

    Args:
        config: of the classifier.
        records: as they are stored, (records, ...); nothing that only records inside of a site hold.
        labels: int64, (records,).
    """
    phase = f"{run.method}/central"
    model = run.classifier(config)
    losses = train_class_balanced(
        model,
        codec_of(run.schema).inputs(records.numpy()),
        labels,
        config.central,
        checkpoints=CHECKPOINTS,
        generator=torch.Generator().manual_seed(run.study.seed),
    )
    for number, loss in enumerate(losses, start=1):
        run.federation.recorder.round(phase, number, CHECKPOINTS, loss=loss)
        if run.evaluates(number, CHECKPOINTS):
            pooled, per_site = evaluate_at_sites(
                run, model, config, phase=f"{run.method}/evaluate", round=number, of=CHECKPOINTS
            )
    return Trained(model, config, pooled, per_site)


def _balanced(classes: int, count: int) -> torch.Tensor:
    """Return equally many labels of each class, at least `count` together."""
    return torch.arange(classes).repeat(-(-count // classes))


def _in_unit_ball(u: torch.Tensor) -> torch.Tensor:
    """Return vectors (batch, dims), longer ones scaled to norm 1."""
    within: torch.Tensor = u / u.norm(dim=1, keepdim=True).clamp_min(1.0)
    return within
