"""What a site says of itself before a study begins."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cadp_fl.config.names import SiteName, Unit
from cadp_fl.data.schema import Schema

__all__ = ["Description"]


class Description(BaseModel):
    """The reply to *describe*: what is public of a site. Counts of classes are a part of that where labels are."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    site: SiteName = Field(description="pseudonym of the site")
    library: str = Field(pattern=r"^[0-9A-Za-z.+!_-]{1,40}$", description="version of cadp-fl")
    dataset: Schema
    unit: Unit = Field(description="what the site protects")
    records_per_unit: int = Field(ge=1, le=1000, description="m: records that each unit contributes")
    labels: Literal["public", "covered"]
    train: int = Field(ge=1, le=10**9, description="number of training units")
    test: int = Field(ge=0, le=10**9, description="number of test units")
    class_counts: dict[str, Annotated[int, Field(ge=0, le=10**12)]] | None = Field(
        description="contributed training records by class, absent classes left out; null where labels are covered"
    )
    noise: Literal["entropy", "seeded"]

    @model_validator(mode="after")
    def _counts_are_of_its_classes(self) -> "Description":
        if self.class_counts is not None and not set(self.class_counts) <= set(self.dataset.classes):
            raise ValueError("class_counts name classes of the data set")
        return self
