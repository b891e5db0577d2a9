"""A site's policy: what its steward allows, whatever a server asks. The defaults are the careful ones.

Only what a steward alone can know has no default: the population, its privacy unit, and the total budget.
"""

from typing import Annotated, Literal

from pydantic import Field

from cadp_fl.config.settings import Count, PrivacyUnit, Settings

__all__ = ["EvaluationPolicy", "PolicyConfig"]

_Delta = Annotated[float, Field(gt=0, lt=1)]


class EvaluationPolicy(Settings):
    """What may be told of classifiers on the site's test records, which are never trained on."""

    exact: bool = Field(False, description="whether exact counts may leave; each reveals a little of every test record")
    epsilon: float = Field(ge=1e-3, le=100, description="total of all noised evaluations, under replace-one")
    delta: _Delta = Field(description="total of all noised evaluations, at most 1 / (10 n) for n test units")
    count: Count = Field(50, description="evaluations in all, exact or noised: one of each method, if noised")


class PolicyConfig(PrivacyUnit):
    """What a site allows. It is checked before anything is computed."""

    population: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]{0,63}$",
        description="the people that the budget belongs to, by a name that stays the same whatever file they are in",
    )
    epsilon: float = Field(ge=1e-3, le=100, description="total of all that ever leaves of training units")
    delta: _Delta = Field(description="total of all that ever leaves of training units")
    labels: Literal["public", "covered"] = Field(
        "covered", description="covered: nothing tells a record's label, nor how many records a class has, but noised"
    )
    mechanisms: tuple[str, ...] = Field(
        ("gaussian", "laplace", "grid-gaussian"), description="mechanisms of a release that are allowed"
    )
    unprotected: bool = Field(
        False, description="whether anything computed without differential privacy may leave, as a flow's weights"
    )
    public_flows: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...] = Field(
        (),
        description="sha256 of flows that no record of this site had a part in, by the steward's own knowledge, since "
        "what a server declares public is no more than its word; any, where unprotected is true",
    )
    made_flows: bool = Field(
        False,
        description="whether a release may use a flow that the server says it made of what this site told under noise, "
        "in the same plan, and of nothing else from these records: the site cannot check that",
    )
    aggregator: Literal["none", "trusted"] = Field(
        "none",
        description="trusted: the site may add a share of the noise alone to values that an aggregator adds up over "
        "sites; claims then hold against those who see the sum, and not against the aggregator",
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
    review: bool = Field(True, description="whether a release waits for the steward's approval")
    evaluation: EvaluationPolicy | None = Field(None, description="nothing is told of test records without it")
