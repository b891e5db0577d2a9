"""`flow-bayes`: argmax_y p(x | y) of a flow within the budget, a classifier that no drawn record stands between."""

from collections.abc import Sequence
from typing import Any, ClassVar

from cadp_fl.config import Settings, StudyConfig, parse
from cadp_fl.data.codec import codec_of
from cadp_fl.data.schema import Schema
from cadp_fl.federated.methods.base import PhaseCost, StudyRun, Trained, bytes_of, evaluate_at_sites
from cadp_fl.federated.methods.parts.flow_method import FlowMethod
from cadp_fl.flow.bayes import FlowBayes

__all__ = ["FlowBayesRule"]


class _NoSettings(Settings):
    """Bayes' rule has none."""


class FlowBayesRule(FlowMethod):
    """argmax_y p(x | y) of the flow: a classifier without training, and without a record drawn."""

    name: ClassVar[str] = "flow-bayes"

    def __init__(self, settings: dict[str, Any], study: StudyConfig) -> None:
        parse(_NoSettings, settings, where=f"methods.{self.name}")
        super().__init__(study)

    def own_phases(self) -> dict[str, int]:
        """Return the number of rounds of every phase after the flow's: the evaluation at the sites."""
        return {f"{self.name}/evaluate": 1}

    def costs(self, schema: Schema, sizes: Sequence[int]) -> list[PhaseCost]:
        """Return what each phase will take."""
        flow = bytes_of(self._flow.card(schema).build())
        return [
            *self._flow.costs(schema, sizes),
            PhaseCost(phase=f"{self.name}/evaluate", rounds=1, down=flow, up=0, work="bayes", records=max(sizes)),
        ]

    def run(self, run: StudyRun) -> Trained:
        """Make the flow, and let the sites evaluate its Bayes rule."""
        flow, card = self._flow.make(run)
        ridge = run.study.flow.moments.ridge
        rule = FlowBayes(flow, codec=codec_of(run.schema), ridge=ridge)
        pooled, per_site = evaluate_at_sites(
            run, rule, card.config, seed=card.seed, ridge=ridge, phase=f"{self.name}/evaluate"
        )
        return Trained(None, None, pooled, per_site)
