"""What goes wrong, as one sentence on stderr."""

from rich.console import Console

__all__ = ["complain"]


def complain(sentence: str) -> None:
    """Print a sentence on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"cadp-fl: {sentence}", markup=False)
