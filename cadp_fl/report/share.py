"""A share, such as an accuracy or a probability, as a reader takes it: 1.000 says that nothing is missing."""

__all__ = ["format_share"]

ALMOST_ALL = "0.999"


def format_share(value: float | None) -> str:
    """Return a share with three digits, rounded to the nearest but where that would be 1 and the share is not."""
    if value is None:
        return "-"
    rounded = f"{value:.3f}"
    return ALMOST_ALL if rounded == "1.000" and value < 1 else rounded
