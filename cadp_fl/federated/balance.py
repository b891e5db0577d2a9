"""Weights that make every class count the same, from what is public of their sizes or was released with noise."""

from collections.abc import Mapping, Sequence

__all__ = ["class_weights"]

_SMALLEST_SHARE = 0.1
"""Of an equal share. A class that noise made smaller, or negative, counts as one of this size."""


def class_weights(counts: Mapping[str, Mapping[str, int]], classes: Sequence[str]) -> tuple[float, ...]:
    """Return w_y = N / (K n_y) for each of K classes: n_y records of all sites together, N of all classes.

    All are 1 where classes have equal counts, or where no count is known. None is above 10.

    Args:
        counts: by site and class; public, or with noise. A class that is left out has none.
        classes: their names.
    """
    sizes = [max(0, sum(by_class.get(name, 0) for by_class in counts.values())) for name in classes]
    least = _SMALLEST_SHARE * sum(sizes) / len(classes)
    if not least:
        return (1.0,) * len(classes)
    return tuple(sum(sizes) / (len(classes) * max(size, least)) for size in sizes)
