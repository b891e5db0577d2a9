"""Whom the units of a study are hidden among: public sizes, which a release's claim rests on."""

from collections.abc import Sequence

from cadp_fl.config import StudyConfig
from cadp_fl.data.schema import Dataset
from cadp_fl.data.units import Units
from cadp_fl.privacy.mechanisms import is_labelled

__all__ = ["is_cohort_open", "why_not_shuffled", "with_cohort"]


def with_cohort(study: StudyConfig, records: Sequence[Dataset]) -> StudyConfig:
    """Return a study that says how many units of every site are shuffled together, if its claims may rest on that.

    Args:
        study: what it says itself stays.
        records: the training records of every site.
    """
    if not _may_shuffle(study):
        return study
    schema, (unit, m) = records[0].schema, (study.budget.unit, study.budget.records_per_unit)
    units = [Units.of(each, unit, m) for each in records]
    if study.labels == "covered":
        smallest = min(len(each) for each in units)
    else:
        counts = (each.class_counts(data) for each, data in zip(units, records, strict=True))
        smallest = min(int(count) for by_class in counts for count in by_class if count)
    known = {"shuffled_units": smallest, "label_classes": len(schema.classes)}
    own = {name: value for name, value in known.items() if getattr(study.release, name) is None}
    counted = study.model_copy(update={"release": study.release.model_copy(update=own)})
    if not why_not_shuffled(counted, attributes=len(schema.attributes)):
        return counted
    return study.model_copy(update={"release": study.release.model_copy(update={"shuffled_units": 0})})


def why_not_shuffled(study: StudyConfig, *, attributes: int = 0) -> str:
    """Return why a release by PrivUnit is claimed message by message, in words; empty where a shuffle hides its units.

    Args:
        attributes: number of the records' attributes.
    """
    if study.release.amplification == "none":
        return "the study asks for no amplification (release.amplification: none)"
    if attributes:
        return "records have attributes, which are public and tell a unit from the others"
    if study.labels == "public" and study.budget.records_per_unit > 1:
        return "labels are public, and a patient's records may be of several classes"
    if study.release.shuffled_units is None or (study.labels == "covered" and study.release.label_classes is None):
        return "the number of units and classes was not known when the plan was made (release.shuffled_units)"
    return "" if study.release.shuffled_units else "the study counts on no others (release.shuffled_units: 0)"


def is_cohort_open(study: StudyConfig, *, attributes: int = 0) -> bool:
    """Return whether a study does not say whom its units hide among, and nothing else speaks against a shuffle."""
    if not _may_shuffle(study) or study.release.shuffled_units == 0:
        return False
    known = study.release.model_copy(update={"shuffled_units": 2, "label_classes": 2})
    named = study.model_copy(update={"release": known})
    return bool(why_not_shuffled(study, attributes=attributes)) and not why_not_shuffled(named, attributes=attributes)


def _may_shuffle(study: StudyConfig) -> bool:
    return is_labelled(study.release.mechanism) and study.release.amplification == "shuffle"
