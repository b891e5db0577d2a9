"""`moments`: `flow-samples` of the warm start alone.

    mean, covariances = sum phi(u_i, y_i) + N(0, sigma^2 I);   u ~ N(mean_y, covariance_y)

An affine layer that is fitted to noised moments, and no gradient step.
"""

from typing import Any, ClassVar

from cadp_fl.config import StudyConfig
from cadp_fl.errors import ConfigError
from cadp_fl.federated.methods.flow_samples import FlowSamples

__all__ = ["Moments"]


class Moments(FlowSamples):
    """`flow-samples` of the warm start alone: an affine layer of noised moments, and no gradient step."""

    name: ClassVar[str] = "moments"
    trains: ClassVar[bool] = False

    def __init__(self, settings: dict[str, Any], study: StudyConfig) -> None:
        if not study.flow.is_warm:
            raise ConfigError("The method moments is a warm start alone. This study has none; give flow.warm_start.")
        super().__init__(settings, study)
