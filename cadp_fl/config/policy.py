"""A site's policy: what its steward allows, whatever a server asks. The defaults are the careful ones.

Only what a steward alone can know has no default: the population, its privacy unit, and the total budget.
"""

from typing import Annotated, Literal

from pydantic import Field

from cadp_fl.config.names import Population
from cadp_fl.config.settings import Count, PrivacyUnit, Settings

__all__ = ["EvaluationPolicy", "PolicyConfig"]

_Delta = Annotated[float, Field(gt=0, lt=1)]


class EvaluationPolicy(Settings):
    """What may be given out about classifiers on the site's test records, which are never trained on."""

    exact: bool = Field(
        False,
        description="whether exact counts may leave. No epsilon covers them, and they read records: with a classifier "
        "of its own choice, a server learns one pixel of a record that is alone in its class from each evaluation",
    )
    epsilon: float = Field(ge=1e-3, le=100, description="total of all noised evaluations, under replace-one")
    delta: _Delta = Field(description="total of all noised evaluations; its bound is that of delta, for n test units")
    count: Count = Field(
        10,
        le=1_000_000,
        description="evaluations in all, exact or noised; a study takes one for each method, if noised",
    )


class PolicyConfig(PrivacyUnit):
    """What a site allows. It is checked before anything is computed."""

    population: Population = Field(
        description="the people that the budget belongs to, by a name that stays the same whatever file they are in",
    )
    epsilon: float = Field(ge=1e-3, le=100, description="total of all that ever leaves of training units")
    delta: _Delta = Field(
        description="total of all that ever leaves of training units: the chance that the bound does not hold. For n "
        "units it is at most 1 / (100 n) and n^-1.5"
    )
    large_delta: bool = Field(
        False,
        description="whether delta may be as large as 1 / (10 n). A mechanism that gives each record away whole with a "
        "chance of delta meets epsilon 0; at 1 / (10 n) that is one record of the site in one of ten runs",
    )
    least_noise: float = Field(
        0.3,
        ge=0,
        le=1000,
        description="smallest noise multiplier: the noise's standard deviation over the clip norm C (over half of how "
        "far one unit moves what is noised). A tiny sampling rate, or many sites that share one noise, make epsilon "
        "small with almost no noise; what is below this is refused, whatever its epsilon",
    )
    most_local_epsilon: float = Field(
        10.0,
        gt=0,
        le=1000,
        description="largest epsilon of what one unit sends in a release by privunit, by itself: it is what is left of "
        "the claim towards whoever sees the release before it is shuffled, or learns its order",
    )
    labels: Literal["public", "covered"] = Field(
        "covered",
        description="covered: a record's label, and how many records a class has, leave with noise or not at all",
    )
    mechanisms: tuple[str, ...] = Field(
        ("grid-gaussian", "gaussian", "laplace", "privunit"),
        description="mechanisms of a release that are allowed. grid-gaussian and privunit hold exactly. "
        "gaussian and laplace hold "
        "up to what the rounding of floating-point numbers shows to a server that chose its flow to that end: leave "
        "them out if you do not trust the server",
    )
    unprotected: bool = Field(
        False, description="whether anything computed without differential privacy may leave, as a flow's weights"
    )
    public_flows: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...] = Field(
        (),
        description="sha256 of flows that no record of this site had a part in, by the steward's own knowledge",
    )
    declared_flows: bool = Field(
        False, description="whether a flow counts as public because a server says so, also if it is not in public_flows"
    )
    made_flows: bool = Field(
        False,
        description="whether a release may use a flow that the server made of this site's noised values, in the same "
        "plan. The site checks that it gave out these values, and that a flow without trained blocks is the one that "
        "sums of sites' moments give; that the server added nothing else from these records is its word. The method "
        "cadp needs this, unless its flow is public",
    )
    aggregator: Literal["none", "trusted"] = Field(
        "none",
        description="trusted: the site may add a share of the noise alone to values that an aggregator adds up over "
        "sites; claims then hold against those who see the sum, and not against the aggregator",
    )
    most_sharers: int = Field(
        10,
        ge=2,
        le=10_000,
        description="sites whose noise may add up, at most, where an aggregator is trusted. The claim rests on all of "
        "them: each that does not really add its share takes noise away",
    )
    min_units: Count = Field(100, description="training units below which the site takes no part")
    min_class_units: int = Field(
        10,
        ge=0,
        le=10**9,
        description="declared or noised count below which a class of the site is not released; 0: any",
    )
    class_counts: dict[str, Annotated[int, Field(ge=0, le=10**9)]] | None = Field(
        None, description="counts of training units by class that the steward declares public, for min_class_units"
    )
    seeded_noise: bool = Field(False, description="whether noise may come from a seed, which protects nothing")
    review: bool = Field(
        True,
        description="whether a release waits for the steward's approval, and what it keeps of its records is measured "
        "for the steward alone",
    )
    evaluation: EvaluationPolicy | None = Field(None, description="nothing is given out about test records without it")
    most_plans: Count = Field(
        1000,
        le=1_000_000,
        description="largest number of plans in the ledger, so that plans which cost next to nothing do not fill it",
    )
    most_entries: Count = Field(
        100_000,
        le=10_000_000,
        description="largest number of entries in the ledger; from then on it takes no plan and no event",
    )
