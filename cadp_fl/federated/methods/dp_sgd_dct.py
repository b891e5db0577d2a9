"""`dp-sgd-dct`: `dp-sgd` of a linear layer on an image's lowest frequencies."""

from typing import ClassVar

from pydantic import Field

from cadp_fl.federated.methods.dp_sgd import DpSgd, DpSgdSettings

__all__ = ["DpSgdDct"]


class _DctSettings(DpSgdSettings):
    model: str | None = Field("linear-dct", description="classifier; null for the study's")


class DpSgdDct(DpSgd):
    """`dp-sgd` on an image's lowest frequencies."""

    name: ClassVar[str] = "dp-sgd-dct"
    settings_model: ClassVar[type[DpSgdSettings]] = _DctSettings
