"""Federated learning on privatized records: content-aware differential privacy on Flower."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("cadp-fl")
