"""What a study of rows means where it does not say it: other defaults than images have.

A front end's radius, the moments' weights and classifiers have defaults that were chosen on images. Where a study
leaves them at these, and its records are rows, they become what was chosen on tables (docs/results.md).
"""

from typing import Any

from cadp_fl.config import ClassifierConfig, FlowConfig, StudyConfig
from cadp_fl.data.schema import Schema

__all__ = ["with_defaults_of_rows"]

_FLOW: dict[str, dict[str, Any]] = {
    "front_end": {"radius": 0.5},
    "moments": {"count_weight": 0.5, "sum_weight": 1.0, "shared_weight": 0.3},
}
_MODEL = "logistic"
_MODEL_OF = {"dp-sgd": "linear-hog"}
"""Methods that name a classifier for images by default."""


def with_defaults_of_rows(study: StudyConfig, schema: Schema) -> StudyConfig:
    """Return a study with the defaults of its kind of records."""
    if schema.kind != "row":
        return study
    said = study.flow.model_dump(exclude_defaults=True)
    flow = {**said, **{group: {**own, **said.get(group, {})} for group, own in _FLOW.items()}}
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
