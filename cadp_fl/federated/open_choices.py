"""What a study may leave open, and what sites say of themselves settles, before anything is reserved.

That is whom a release hides among, how many numbers are asked for, and what rows have by default where images have
something else. A simulation settles all before it plans. Over real sites a plan is made before any site says what it
is, so that the study names them; one that does not is stopped when the sites have said it.

A warm start asks for few numbers where noise would outweigh more. The noise on the mean of a class, of K classes as
large, has the length

    sigma sqrt(sites d) K / n

in units of the ball that records lie in, with d numbers of n records: m of each unit, whether it has as many or
not. Where it is 1 or more, no class's mean is known better than by chance, and fewer numbers say more. Of rows, few
are all but the second moments of each class, which noise outweighs long before: from a length of 0.1 on. All of it is
public.
"""

import math
from collections.abc import Mapping, Sequence

from cadp_fl.config import StudyConfig
from cadp_fl.data.codec import input_shape
from cadp_fl.data.schema import Schema
from cadp_fl.errors import ConfigError
from cadp_fl.features.front_end import front_end_of
from cadp_fl.federated.methods import build_methods
from cadp_fl.federated.methods.parts.dp_flow import moments_of
from cadp_fl.federated.row_defaults import keys_of_rows, with_defaults_of_rows
from cadp_fl.privacy.events import Event, LatentPrivUnit
from cadp_fl.release.cohort import is_cohort_open
from cadp_fl.report.results import SiteEntry

__all__ = ["asks_for_few", "check_choices", "noise_of_a_mean"]

_MOST_NOISE = {"image": 1.0, "row": 0.1}
"""Length of the noise on a class's mean from which on few numbers are asked for."""


def asks_for_few(study: StudyConfig, schema: Schema, units: Sequence[int]) -> bool:
    """Return whether a study leaves open how many numbers its warm start asks for, and all would be too many.

    Args:
        units: number of training units of every site.

    Raises:
        BudgetError: no noise meets the budget.
    """
    flow = study.flow
    is_open = flow.is_warm and flow.moments.ask == "auto" and not schema.attributes
    if not is_open or not any(event.stage == "moments" for event in _events(study)):
        return False
    return noise_of_a_mean(study, schema, units) >= _MOST_NOISE[schema.kind]


def noise_of_a_mean(study: StudyConfig, schema: Schema, units: Sequence[int]) -> float:
    """Return the length of the noise on a class's mean, in units of the ball's radius; 0 where no sums are asked for.

    Args:
        units: number of training units of every site.

    Raises:
        BudgetError: no noise meets the budget.
    """
    _, event = moments_of(study)
    dims = front_end_of(study.flow.front_end, input_shape(schema)).dims
    std = event.part_stds.get("sums", 0.0)
    records = study.budget.records_per_unit * sum(units)
    return std * math.sqrt(len(units) * dims) * len(schema.classes) / records


def check_choices(study: StudyConfig, schema: Schema, sites: Mapping[str, SiteEntry]) -> None:
    """Check that a study over real sites leaves nothing open that their sizes, which they have said, settle.

    Raises:
        ConfigError: it does; the message says which keys to add, and with which values.
    """
    units = [entry.train for entry in sites.values()]
    found = []
    alone = any(isinstance(event, LatentPrivUnit) and not event.hidden_among for event in _events(study))
    if alone and is_cohort_open(study, attributes=len(schema.attributes)):
        found.append(f"{_cohort(study, schema, sites)} (release.amplification: none claims each message by itself)")
    if asks_for_few(with_defaults_of_rows(study, schema), schema, units):
        found.append("flow.moments.ask: few (all asks for more, which the noise would outweigh)")
    found += keys_of_rows(study, schema)
    if found:
        raise ConfigError(
            "A study over real sites names what a simulation settles by what is public of the sites. Found it left "
            f"open; as the {len(units)} sites that answered say, add {' and '.join(found)}, and start a new run. "
            "Nothing was reserved."
        )


def _cohort(study: StudyConfig, schema: Schema, sites: Mapping[str, SiteEntry]) -> str:
    """Return the keys that say whom a release hides among: all units of the smallest site, or those of one class."""
    if study.labels == "covered":
        smallest = min(entry.train for entry in sites.values())
        return f"release.shuffled_units: {smallest} and release.label_classes: {len(schema.classes)}"
    counts = [count for entry in sites.values() for count in (entry.class_counts or {}).values() if count]
    return f"release.shuffled_units: {min(counts, default=0)}"


def _events(study: StudyConfig) -> list[Event]:
    return [event for method in build_methods(study) for event in method.events()]
