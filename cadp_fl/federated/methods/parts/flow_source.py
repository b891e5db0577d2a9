"""Where a method's flow is from, and all that it costs: what `PlainFlow` and `DpFlow` have in common."""

from collections.abc import Sequence
from typing import Protocol

from cadp_fl.data.schema import Schema
from cadp_fl.federated.methods.base import PhaseCost, StudyRun
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.moments import NoisedMoments
from cadp_fl.flow.storage import FlowCard
from cadp_fl.privacy.budget import Budget
from cadp_fl.privacy.events import Event, ProtectedEvent

__all__ = ["FlowSource"]


class FlowSource(Protocol):
    """Makes the flow of a method.

    Attributes:
        budget: of the method.
    """

    budget: Budget

    @property
    def tells_counts(self) -> bool:
        """Whether noised class counts come with the flow."""
        ...

    def protected(self) -> tuple[ProtectedEvent, ...]:
        """Return what is noised of all that the flow costs."""
        ...

    def events(self) -> tuple[Event, ...]:
        """Return everything that the flow will cost at a site."""
        ...

    def phases(self) -> dict[str, int]:
        """Return the number of rounds of every phase, in order."""
        ...

    def costs(self, schema: Schema, sizes: Sequence[int]) -> list[PhaseCost]:
        """Return what each phase will take."""
        ...

    def card(self, schema: Schema) -> FlowCard:
        """Return what the flow is before anything is learned of records."""
        ...

    def make(self, run: StudyRun) -> tuple[ConditionalFlow, FlowCard]:
        """Return the flow: made now, or before an interruption."""
        ...

    def made_of(self, run: StudyRun, flow: ConditionalFlow) -> NoisedMoments | None:
        """Return the moments that the flow was made of, which sites check it against; None where it was not."""
        ...
