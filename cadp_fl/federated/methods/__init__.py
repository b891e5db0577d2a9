"""The methods that a study compares, in one registry.

Each is a file of its own, which says its formula; `parts` has what several of them are made of. To add one, write a
class with the members of `Method` and put it into `METHODS`.
"""

from collections.abc import Iterable, Sequence

from cadp_fl.config import StudyConfig
from cadp_fl.data.schema import Schema
from cadp_fl.errors import ConfigError
from cadp_fl.federated.methods.base import Method
from cadp_fl.federated.methods.cadp import Cadp
from cadp_fl.federated.methods.cadp_given_flow import CadpGivenFlow
from cadp_fl.federated.methods.dp_sgd import DpSgd
from cadp_fl.federated.methods.dp_sgd_cnn import DpSgdCnn
from cadp_fl.federated.methods.dp_sgd_dct import DpSgdDct
from cadp_fl.federated.methods.fedavg import FedAvg
from cadp_fl.federated.methods.flow_bayes import FlowBayesRule
from cadp_fl.federated.methods.flow_samples import FlowSamples
from cadp_fl.federated.methods.local import Local
from cadp_fl.federated.methods.moments import Moments

__all__ = ["METHODS", "build_methods", "check_shapes"]

METHODS: dict[str, type[Method]] = {
    kind.name: kind
    for kind in (
        Cadp,
        FlowSamples,
        FlowBayesRule,
        Moments,
        CadpGivenFlow,
        DpSgd,
        DpSgdDct,
        DpSgdCnn,
        FedAvg,
        Local,
    )
}


def build_methods(study: StudyConfig) -> list[Method]:
    """Return a study's methods, in its order, with their noise calibrated.

    Raises:
        ConfigError: a method or one of its settings is unknown.
    """
    unknown = [name for name in study.methods if name not in METHODS]
    if unknown:
        raise ConfigError(f"Unknown method '{unknown[0]}'. Choose from: {', '.join(METHODS)}.")
    return [METHODS[name](settings, study) for name, settings in study.methods.items()]


def check_shapes(methods: Iterable[Method], schema: Schema, sizes: Sequence[int]) -> None:
    """Check that every network which a method will build fits the records; each checks what it uses, and no more.

    Args:
        sizes: number of training records of each site.

    Raises:
        ConfigError: one does not fit; the message names the method.
    """
    for method in methods:
        try:
            method.costs(schema, sizes)
        except ConfigError as error:
            raise ConfigError(f"Method {method.name}: {error}") from error
