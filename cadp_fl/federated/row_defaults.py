"""What a study of rows means where it does not say it: other defaults than images have.

A front end's radius, the moments' weights and classifiers have defaults that were chosen on images. Where a study
leaves them at these, and its records are rows, they become what was chosen on tables (docs/results.md).
"""

import math
from typing import Any

from cadp_fl.config import ClassifierConfig, FlowConfig, StudyConfig
from cadp_fl.data.schema import Schema

__all__ = ["keys_of_rows", "radius_of", "with_defaults_of_rows"]

_FLOW: dict[str, dict[str, Any]] = {
    "moments": {"count_weight": 0.5, "sum_weight": 1.0, "shared_weight": 0.3},
}
_MODEL = "logistic"
_MODEL_OF = {"dp-sgd": "linear-hog"}
"""Methods that name a classifier for images by default."""


_SPREAD = {"category": 0.75, "number": 0.1, "number-or-missing": 0.1}
"""Of the square of a column's part in |v - c|, where its norm is 1: categories differ by much, numbers lie together."""


def radius_of(schema: Schema) -> float:
    """Return R for rows of a schema: how far from the centre they may be, by the kinds of their columns alone."""
    kinds = [column.block[0] for column in schema.columns]
    return round(math.sqrt(sum(_SPREAD[kind] for kind in kinds) / len(kinds)), 2)


def with_defaults_of_rows(study: StudyConfig, schema: Schema) -> StudyConfig:
    """Return a study with the defaults of its kind of records."""
    if schema.kind != "row":
        return study
    said = study.flow.model_dump(exclude_defaults=True)
    defaults = {"front_end": {"radius": radius_of(schema)}, **_FLOW}
    flow = {**said, **{group: {**own, **said.get(group, {})} for group, own in defaults.items()}}
    if isinstance(said.get("moments"), dict) and said["moments"].get("ask") == "few":
        flow["moments"] = said["moments"]
    classifier = study.classifier
    if classifier.model == ClassifierConfig().model:
        classifier = classifier.model_copy(update={"model": _MODEL})
    methods = {
        name: {"model": _MODEL, **settings} if name in _MODEL_OF and isinstance(settings, dict) else settings
        for name, settings in study.methods.items()
    }
    return study.model_copy(
        update={"flow": FlowConfig.model_validate(flow), "classifier": classifier, "methods": methods}
    )


def keys_of_rows(study: StudyConfig, schema: Schema) -> list[str]:
    """Return what a study of rows has to say, as `dotted.key: value`, to have the defaults of rows."""
    meant = with_defaults_of_rows(study, schema)
    keys = [
        f"flow.{group}.{key}: {value}"
        for group in ("front_end", "moments")
        for key, value in getattr(meant.flow, group).model_dump().items()
        if study.flow.is_warm and value != getattr(study.flow, group).model_dump()[key]
    ]
    if meant.classifier.model != study.classifier.model:
        keys.append(f"classifier.model: {meant.classifier.model}")
    return keys + [
        f"methods.{name}.model: {settings['model']}"
        for name, settings in meant.methods.items()
        if isinstance(settings, dict) and settings != study.methods[name]
    ]
