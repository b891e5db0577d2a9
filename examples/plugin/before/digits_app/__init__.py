"""Federated averaging of a small network on handwritten digits."""
