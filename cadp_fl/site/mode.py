"""In which of three modes a site runs: whose records it has, and how long its ledger lasts."""

from enum import Enum

from cadp_fl.privacy.ledger import Ledger

__all__ = ["Mode"]


class Mode(Enum):
    """What a site is.

    SIMULATION: dealt records, of which figures may leave; each method counts as if it had been run alone.
    STANDALONE: real records, in a command whose ledger ends with it.
    DEPLOYED: real records, and a ledger that lasts, on which plans add up.
    """

    SIMULATION = "simulation"
    STANDALONE = "standalone"
    DEPLOYED = "deployed"

    @classmethod
    def of(cls, *, simulation: bool, ledger: Ledger) -> "Mode":
        """Return the mode of a site.

        Args:
            simulation: whether its records are a simulation's.
            ledger: its own.
        """
        if simulation:
            return cls.SIMULATION
        return cls.STANDALONE if ledger.simulation else cls.DEPLOYED

    @property
    def is_real(self) -> bool:
        """Whether the records are real ones, of which nothing leaves that no event pays for."""
        return self is not Mode.SIMULATION

    @property
    def is_durable(self) -> bool:
        """Whether the ledger outlives the process, so that all plans on it add up."""
        return self is Mode.DEPLOYED
