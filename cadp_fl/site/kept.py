"""What a release keeps of its records, for the steward who reviews it, and for nobody else.

A site whose policy asks for review measures it when it makes a release, while it knows the order, which it then
forgets. The figures lie beside the bundle in the outbox, in a file of the agent's user alone: no pair, no order and no
value of a single record. Originals have a part in each of them, and no epsilon covers one: no reply, no manifest and no
log has them, and a fetch sends the shards that a manifest names and nothing else.
"""

import math
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cadp_fl.outputs import write_durably
from cadp_fl.release.manifest import Manifest, manifest_sha256

__all__ = ["FOR_THE_STEWARD", "Figures", "Kept"]

FOR_THE_STEWARD = (
    "These figures are computed from original records. No epsilon covers them: they are for the steward alone, and for "
    "finding faults. Give them to nobody; a decision that depends on them is covered by no epsilon either."
)

_MISSING = (
    "no figures of this bundle are here. It was made without review or by an earlier version, or its agent stopped "
    "before it had them or could not write them"
)

_Share = Annotated[float, Field(ge=0, le=1)]
_Correlation = Annotated[float, Field(ge=-1.000001, le=1.000001)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Discriminant(_Model):
    """Of a discriminant that learned from released records alone, on test records; null where none could."""

    accuracy: _Share | None
    balanced_accuracy: _Share | None


class _Linkage(_Model):
    """How often the most alike of some candidates is a release's own record."""

    candidates: float = Field(ge=1, le=1000)
    linked: _Share
    by_chance: _Share
    at_most: _Share = Field(description="under the epsilon of one message by itself")


class _Nearest(_Model):
    """Median distance to the nearest of as many records, root mean squares over pixels in [0, 1]."""

    to_training: _Share
    to_held_out: _Share
    nearer_to_training: _Share


class _Distributions(_Model):
    """Released records as a whole against originals, in block gradients."""

    frechet: float = Field(ge=-1, le=1e12)
    precision: _Share
    recall: _Share
    density: float = Field(ge=0, le=1e6)
    coverage: _Share


class Figures(_Model):
    """What a release keeps of its records, as `evaluation.fidelity` measures it."""

    image_correlation: _Correlation
    latent_correlation: _Correlation
    label_agreement: _Share
    linear_released: _Discriminant
    quadratic_released: _Discriminant
    linkage: _Linkage
    nearest: _Nearest | None = Field(None, description="null where there are no test records")
    distributions: _Distributions


class Kept(_Model):
    """What a site found out about a release that it made.

    Attributes:
        records: that were compared with their releases.
        figures: of these; None where they were not measured.
        reason: why not.
    """

    records: int = Field(0, ge=0, le=10**6)
    figures: Figures | None = None
    reason: str = ""

    @classmethod
    def of(cls, outbox: Path, manifest: Manifest) -> "Kept":
        """Return what an outbox has of a release; what it has of another bundle of that name counts for nothing."""
        try:
            stored = _Stored.model_validate_json(_path(outbox, manifest.event_id).read_bytes())
        except (OSError, ValidationError):
            return cls(reason=_MISSING)
        return stored.kept if stored.manifest_sha256 == manifest_sha256(manifest) else cls(reason=_MISSING)

    def store(self, outbox: Path, manifest: Manifest) -> None:
        """Write it beside the bundle, for this user alone.

        Raises:
            OSError: it cannot be written there.
        """
        stored = _Stored(manifest_sha256=manifest_sha256(manifest), kept=self)
        write_durably(_path(outbox, manifest.event_id), stored.model_dump_json(indent=2).encode())

    @staticmethod
    def forget(outbox: Path, event_id: str) -> None:
        """Remove what an outbox has of an earlier release of that name."""
        _path(outbox, event_id).unlink(missing_ok=True)

    def in_short(self) -> str:
        """Return it as one sentence."""
        if self.figures is None:
            return f"What it keeps of its records was not measured: {self.reason}."
        return (
            f"It keeps a correlation of {_number(self.figures.image_correlation)} with its records within their "
            f"classes and {_percent(self.figures.label_agreement)} of their labels; "
            f"{_percent(self.figures.linkage.linked)} are linked."
        )

    def sentences(self, manifest: Manifest) -> list[str]:
        """Return it as sentences, each of one figure or a few that belong together."""
        if self.figures is None:
            return [self.in_short()]
        figures, linkage = self.figures, self.figures.linkage
        among = " among records of its label, which is public" if manifest.parameters.label_epsilon is None else ""
        said = [
            f"{self.records} of the {manifest.records} released records were compared with their originals.",
            f"A released image has a correlation of {_number(figures.image_correlation)} with its record within its "
            f"class, and the latents that carry it one of {_number(figures.latent_correlation)}.",
            f"{_percent(figures.label_agreement)} of released labels are true.",
            f"The record most alike among {linkage.candidates:.0f} candidates is the right one "
            f"{_percent(linkage.linked)} of the time ({_percent(linkage.by_chance)} by chance, at most "
            f"{_percent(linkage.at_most, up=True)} under the epsilon of its message by itself{among}).",
        ]
        if figures.nearest is not None:
            said.append(
                "A released image is nearer to a training record than to any of as many test records "
                f"{_percent(figures.nearest.nearer_to_training)} of the time (50 % shows nobody; median distances "
                f"{_number(figures.nearest.to_training)} and {_number(figures.nearest.to_held_out)})."
            )
        linear, quadratic = figures.linear_released, figures.quadratic_released
        if linear.balanced_accuracy is None or quadratic.balanced_accuracy is None:
            said.append("No classifier was trained on it: there are no test records, or too few released ones.")
        else:
            said.append(
                "A classifier that saw released records alone has a balanced accuracy of "
                f"{_percent(linear.balanced_accuracy)} on test records if it is linear, and "
                f"{_percent(quadratic.balanced_accuracy)} if it is quadratic."
            )
        whole = figures.distributions
        said.append(
            f"As a whole it has a Frechet distance of {whole.frechet:.3g} to the originals, precision "
            f"{_number(whole.precision)}, recall {_number(whole.recall)}, density {_number(whole.density)} and "
            f"coverage {_number(whole.coverage)}, in block gradients."
        )
        return said


class _Stored(_Model):
    manifest_sha256: str
    kept: Kept


def _path(outbox: Path, event_id: str) -> Path:
    return outbox / f"{event_id}.fidelity.json"


def _number(value: float) -> str:
    """Return a figure with two decimals, and no zero before the point: -.05."""
    text = f"{round(value, 2) + 0.0:.2f}"
    return text.replace("0.", ".", 1) if abs(value) < 0.995 else text


def _percent(share: float, *, up: bool = False) -> str:
    """Return a share in whole percent, a bound rounded up."""
    return f"{math.ceil(100 * share - 1e-9) if up else round(100 * share)} %"
