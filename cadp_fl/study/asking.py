"""How many numbers a warm start asks its sites for: few where noise would outweigh more.

The noise on the mean of a class, of K classes as large, has the length

    sigma sqrt(sites d) K / n

in units of the ball that records lie in, with d numbers of n records: m of each unit, whether it has as many or
not. Where it is 1 or more, no class's mean is known better than by chance, and fewer numbers say more. All of it is
public. Of rows, see `_MOST_NOISE`.
"""

import math
from collections.abc import Sequence

from cadp_fl.config import FlowConfig, StudyConfig
from cadp_fl.data.codec import input_shape
from cadp_fl.data.partition import SiteData
from cadp_fl.data.units import Units
from cadp_fl.features.front_end import front_end_of
from cadp_fl.federated.methods import build_methods
from cadp_fl.federated.methods.parts.dp_flow import moments_of

__all__ = ["noise_of_a_mean", "with_numbers_asked"]

_MOST_NOISE = {"image": 1.0, "row": 0.1}
"""Length of the noise on a class's mean from which on few numbers are asked for. Of rows, few are all but the second
moments of each class: their noise outweighs them long before that of the means does."""


def with_numbers_asked(study: StudyConfig, sites: Sequence[SiteData]) -> StudyConfig:
    """Return a study whose warm start asks for few numbers, where it leaves the choice open and all would be too many.

    Raises:
        BudgetError: no noise meets the budget.
    """
    flow = study.flow
    is_open = flow.is_warm and flow.moments.ask == "auto" and not sites[0].train.schema.attributes
    most = _MOST_NOISE[sites[0].train.schema.kind]
    if not is_open or not _asks_for_moments(study) or noise_of_a_mean(study, sites) < most:
        return study
    said = flow.model_dump(exclude_defaults=True)
    few = FlowConfig.model_validate({**said, "moments": {**said.get("moments", {}), "ask": "few"}})
    return study.model_copy(update={"flow": few})


def _asks_for_moments(study: StudyConfig) -> bool:
    return any(event.stage == "moments" for method in build_methods(study) for event in method.events())


def noise_of_a_mean(study: StudyConfig, sites: Sequence[SiteData]) -> float:
    """Return the length of the noise on a class's mean, in units of the ball's radius; 0 where no sums are asked for.

    Raises:
        BudgetError: no noise meets the budget.
    """
    schema, (unit, m) = sites[0].train.schema, (study.budget.unit, study.budget.records_per_unit)
    records = sum(m * len(Units.of(site.train, unit, m)) for site in sites)
    _, event = moments_of(study)
    dims = front_end_of(study.flow.front_end, input_shape(schema)).dims
    std = event.part_stds.get("sums", 0.0)
    return std * math.sqrt(len(sites) * dims) * len(schema.classes) / records
