"""What a site releases of its training records' features: a noised sum, and noised moments around a centre."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from cadp_fl.config import FrontEndConfig
from cadp_fl.data.codec import codec_of
from cadp_fl.data.schema import Dataset
from cadp_fl.data.units import Units
from cadp_fl.errors import ConfigError, ExchangeError, FlowOriginError
from cadp_fl.features.front_end import FrontEnd
from cadp_fl.outputs import replaced_file
from cadp_fl.privacy.events import GaussianMoments, GaussianSum
from cadp_fl.privacy.moments import clipped_sum, joint_moments
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.weights import weights_sha256

__all__ = ["GivenMoments", "check_moments", "features_of", "noised_moments"]

MAX_NUMBERS = 1 << 25
"""Of one site's moments, 256 MiB."""

BATCH = 512


def check_moments(front: FrontEnd, schema_classes: int, event: GaussianSum | GaussianMoments) -> None:
    """Check that an event is of a stage that releases moments, and that what it releases fits into memory.

    Raises:
        ConfigError: it does not.
        ExchangeError: the event is of another stage.
    """
    if event.stage != "moments":
        raise ExchangeError(f"Moments are released in stage 'moments'. Found '{event.stage}'; ask for that.")
    numbers = (schema_classes + 1) * front.dims * (front.dims + 1) // 2
    if numbers > MAX_NUMBERS:
        raise ConfigError(
            f"A site's moments are at most {MAX_NUMBERS} numbers. {front.dims} features of {schema_classes} classes "
            f"make {numbers}; lower flow.front_end.size."
        )


class GivenMoments:
    """What moments a site gave out, by hashes, so that a flow which is said to be made of them can be held against it.

    Args:
        folder: where that is remembered.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def remember(
        self, plan: str, front_end: FrontEndConfig, centre: np.ndarray, moments: Mapping[str, np.ndarray]
    ) -> None:
        """Write down what is given out under a plan."""
        path, given = self._file(plan), [*self._given(plan), _given(front_end, centre, moments)]
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(path) as file:
            file.write_text(json.dumps(given), encoding="utf-8")

    def check(
        self,
        plan: str,
        front_end: FrontEndConfig,
        centre: np.ndarray,
        moments: Mapping[str, np.ndarray],
        *,
        is_alone: bool,
    ) -> None:
        """Check that moments are around a centre and of a front end that the site's own were, under the same plan.

        Args:
            is_alone: whether they are of this site alone, so that they are its own.

        Raises:
            FlowOriginError: they are not.
        """
        found = _given(front_end, centre, moments)
        kept = [each for each in self._given(plan) if (each[0], each[1]) == (found[0], found[1])]
        if not kept:
            raise FlowOriginError(
                "A flow is made of moments around the centre, and of the front end, that its sites were asked for. "
                "Those that came are of others; send what was asked for."
            )
        if is_alone and found not in kept:
            raise FlowOriginError(
                "A flow that is made of one site's moments is made of what that site gave out. Other numbers came; "
                "send those."
            )

    def _given(self, plan: str) -> list[list[str]]:
        path = self._file(plan)
        given: list[list[str]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        return given

    def _file(self, plan: str) -> Path:
        return self._folder / f"moments-{hashlib.sha256(plan.encode()).hexdigest()[:16]}.json"


def _given(front_end: FrontEndConfig, centre: np.ndarray, moments: Mapping[str, np.ndarray]) -> list[str]:
    """Return what identifies moments: their front end, and hashes of their centre and of their numbers."""
    return [front_end.model_dump_json(), weights_sha256({"centre": centre}), weights_sha256(moments)]


def features_of(front: FrontEnd, records: Dataset) -> np.ndarray:
    """Return what a flow's affine layer sees of the middles of levels, float64 (records, dims)."""
    codec = codec_of(records.schema)
    parts = [
        front(codec.to_unit(torch.from_numpy(records.records[start : start + BATCH])).double())[0]
        for start in range(0, len(records), BATCH)
    ]
    features: np.ndarray = torch.cat(parts).numpy() if parts else np.zeros((0, front.dims))
    return features


def noised_moments(
    front: FrontEnd,
    records: Dataset,
    units: Units,
    event: GaussianSum | GaussianMoments,
    centre: np.ndarray | None,
    *,
    noise: NoiseSource,
) -> dict[str, np.ndarray]:
    """Return the noised sum of all units' features, or their noised moments around a centre, float64 by name.

    Args:
        front: gives the features.
        units: of the records; each contributes up to m.
        event: what is released, and what it costs.
        centre: float64 (dims,), of moments; a sum has none.
        noise: of this alone.
    """
    contributed, blank = units.take(records, np.arange(len(units.slots)))
    features = features_of(front, contributed)
    if isinstance(event, GaussianSum):
        return {"sum": clipped_sum(features, event, noise=noise, blank=blank)}
    assert centre is not None, "moments come with a centre"
    classes = len(records.schema.classes)
    moments = joint_moments(
        features, contributed.labels, event, classes=classes, centre=centre, noise=noise, blank=blank
    )
    return moments.arrays()
