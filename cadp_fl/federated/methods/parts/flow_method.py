"""A method that spends its whole budget on a flow: no record of a site is encoded.

What the flow knows of the sites' records is all that leaves; everything after it is post-processing.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from cadp_fl.config import StudyConfig
from cadp_fl.federated.methods.parts.dp_flow import DpFlow
from cadp_fl.privacy.events import Event

__all__ = ["FlowMethod"]


class FlowMethod(ABC):
    """A method that spends its whole budget on a flow."""

    name: ClassVar[str]
    trains: ClassVar[bool] = True

    def __init__(self, study: StudyConfig) -> None:
        self._study = study
        self._flow = DpFlow(self.name, study, is_all=True, trains=self.trains)

    def events(self) -> tuple[Event, ...]:
        """Return everything that the method will spend at a site."""
        return self._flow.events()

    def phases(self) -> dict[str, int]:
        """Return the number of rounds of every phase, in order."""
        return self._flow.phases() | self.own_phases()

    @abstractmethod
    def own_phases(self) -> dict[str, int]:
        """Return the number of rounds of every phase after the flow's."""
