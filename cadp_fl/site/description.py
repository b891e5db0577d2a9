"""What a site says of itself before a study begins."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cadp_fl.data.schema import Schema

__all__ = ["Description"]


class Description(BaseModel):
    """The reply to *describe*. Counts are declared ones; under public labels that includes those of the classes."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    site: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$", description="pseudonym of the site")
    library: str = Field(max_length=40, description="version of cadp-fl")
    dataset: Schema
    train: int = Field(ge=1, description="number of training records")
    test: int = Field(ge=0, description="number of test records")
    class_counts: dict[str, int] = Field(description="training records by class; absent classes are left out")
    noise: Literal["entropy", "seeded"]
