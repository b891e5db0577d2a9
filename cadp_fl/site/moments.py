"""What a site tells of its training records' features: their noised sum, and their noised moments around a centre."""

import numpy as np
import torch

from cadp_fl.data.schema import Dataset
from cadp_fl.data.units import Units
from cadp_fl.errors import ConfigError, ExchangeError
from cadp_fl.features.front_end import FrontEnd
from cadp_fl.flow.training import dequantize
from cadp_fl.privacy.accounting import GaussianMoments, GaussianSum
from cadp_fl.privacy.moments import clipped_sum, joint_moments
from cadp_fl.privacy.noise import NoiseSource

__all__ = ["check_moments", "features_of", "told_moments"]

MAX_NUMBERS = 1 << 25
"""Of one site's moments, 256 MiB."""

_BATCH = 512


def check_moments(front: FrontEnd, schema_classes: int, event: GaussianSum | GaussianMoments) -> None:
    """Check that an event is of a stage that tells moments, and that what it tells fits into memory.

    Raises:
        ConfigError: it does not.
        ExchangeError: the event is of another stage.
    """
    if event.stage != "moments":
        raise ExchangeError(f"Moments are told in stage 'moments'. Found '{event.stage}'; ask for that.")
    numbers = (schema_classes + 1) * front.dims * (front.dims + 1) // 2
    if numbers > MAX_NUMBERS:
        raise ConfigError(
            f"A site's moments are at most {MAX_NUMBERS} numbers. {front.dims} features of {schema_classes} classes "
            f"make {numbers}; lower flow.front_end.size."
        )


def features_of(front: FrontEnd, records: Dataset) -> np.ndarray:
    """Return what a flow's affine layer sees of the middles of grey levels, float64 (records, dims)."""
    parts = [
        front(dequantize(torch.from_numpy(records.images[start : start + _BATCH]), records.schema.levels).double())[0]
        for start in range(0, len(records), _BATCH)
    ]
    features: np.ndarray = torch.cat(parts).numpy() if parts else np.zeros((0, front.dims))
    return features


def told_moments(
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
        event: what is told, and what it costs.
        centre: float64 (dims,), of moments; a sum has none.
        noise: of this alone.
    """
    told, blank = units.take(records, np.arange(len(units.slots)))
    features = features_of(front, told)
    if isinstance(event, GaussianSum):
        return {"sum": clipped_sum(features, event, noise=noise, blank=blank)}
    assert centre is not None, "moments come with a centre"
    classes = len(records.schema.classes)
    moments = joint_moments(features, told.labels, event, classes=classes, centre=centre, noise=noise, blank=blank)
    return moments.arrays()
