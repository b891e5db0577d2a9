"""How many numbers a simulation's warm start asks its sites for, where the study leaves that open."""

from collections.abc import Sequence

from cadp_fl.config import FlowConfig, StudyConfig
from cadp_fl.data.partition import SiteData
from cadp_fl.data.units import Units
from cadp_fl.federated.open_choices import asks_for_few

__all__ = ["training_units", "with_numbers_asked"]


def with_numbers_asked(study: StudyConfig, sites: Sequence[SiteData]) -> StudyConfig:
    """Return a study whose warm start asks for few numbers, where it leaves the choice open and all would be too many.

    Raises:
        BudgetError: no noise meets the budget.
    """
    if not asks_for_few(study, sites[0].train.schema, training_units(study, sites)):
        return study
    said = study.flow.model_dump(exclude_defaults=True)
    moments = {**said.get("moments", {}), "ask": "few"}
    if sites[0].train.schema.kind == "row":  # whose weight is that of images by chance, and is kept
        moments = {"shared_weight": study.flow.moments.shared_weight, **moments}
    few = FlowConfig.model_validate({**said, "moments": moments})
    return study.model_copy(update={"flow": few})


def training_units(study: StudyConfig, sites: Sequence[SiteData]) -> list[int]:
    """Return the number of training units of every site."""
    unit, m = study.budget.unit, study.budget.records_per_unit
    return [len(Units.of(site.train, unit, m)) for site in sites]
