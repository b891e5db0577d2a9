"""Where the command begins. Its modules take a while to load, in which a user may think better of it."""

import signal

from cadp_fl.stopping import heeded, stop_at_once

__all__ = ["main"]


def main() -> None:
    """Load the command line, and run it. Once it is done, no signal changes what came of it."""
    signals = heeded()
    for number in signals:
        signal.signal(number, stop_at_once)
    from cadp_fl.cli.main import main as command

    try:
        command()
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
