"""The learning rate over training, for flows and classifiers alike."""

import math

__all__ = ["cosine"]

FINAL_RATE = 0.05


def cosine(position: float) -> float:
    """Return the share of the peak learning rate at a position in [0, 1] of training: a cosine from 1 to 0.05."""
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * min(max(position, 0.0), 1.0)))
