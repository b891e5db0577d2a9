"""What goes wrong, as one sentence on stderr."""

from cadp_fl.cli.console import outlasting

__all__ = ["StoppedError", "complain"]


class StoppedError(Exception):
    """A command was asked to end, and has ended in order. Its text says what is left."""


def complain(sentence: str) -> None:
    """Print a sentence on stderr, where it can be."""
    outlasting("stderr").print(f"cadp-fl: {sentence}", soft_wrap=True)
