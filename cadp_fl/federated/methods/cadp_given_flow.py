"""`cadp-given-flow`, the paper's protocol: a flow that is trained without privacy, then privatized records.

    f = FedAvg(flows);   x' = f^-1(clip(f(x, y); C) + N(0, sigma^2 I), y);   classifier on all (x', y)

Given the flow, the release is (epsilon, delta)-DP. The flow is trained on the same records without DP, leaves the
sites, and is not covered: the guarantee is `given-flow`.

References:
    Content-Aware Differential Privacy with Conditional Invertible Neural Networks, arXiv 2207.14625.
"""

from typing import Any, ClassVar

from cadp_fl.config import Settings, StudyConfig, parse
from cadp_fl.federated.methods.base import StudyRun, Trained
from cadp_fl.federated.methods.parts.central import train_centrally
from cadp_fl.federated.methods.parts.plain_flow import PlainFlow
from cadp_fl.federated.methods.parts.releasing import ReleasingMethod
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.release.dataset import ReleasedRecords

__all__ = ["CadpGivenFlow"]


class _Settings(Settings):
    """`cadp-given-flow` takes its settings from the study's flow, release and classifier."""


class CadpGivenFlow(ReleasingMethod):
    """The paper's protocol: the flow is trained on the same records without privacy, and is not covered."""

    name: ClassVar[str] = "cadp-given-flow"

    def __init__(self, settings: dict[str, Any], study: StudyConfig) -> None:
        parse(_Settings, settings, where=f"methods.{self.name}")
        super().__init__(study, PlainFlow(self.name, study), study.classifier)

    def classify(self, run: StudyRun, flow: ConditionalFlow, released: ReleasedRecords) -> Trained:
        """Return the study's classifier, trained on privatized records alone."""
        return train_centrally(run, self.classifier, released.records, released.labels)
