"""A contest: ours against a reference on the same work, timed in turns, so that a busy machine slows both alike.

    ratio = median over the turns of (reference's seconds per item / our seconds per item)

Rates of one run compare with nothing but each other; the ratio is what can be reported to others.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Benchmark", "Contender", "Contest", "Result", "Setting", "hold"]


@dataclass(frozen=True)
class Setting:
    """Where and how thoroughly to measure.

    Attributes:
        device: that computes.
        quick: whether to do just enough to show that it works; such figures mean little.
        folder: an empty one to write to, removed afterwards.
    """

    device: torch.device
    quick: bool
    folder: Path


@dataclass(frozen=True)
class Contender:
    """Something to time.

    Attributes:
        items: units of work in one call.
        work: does it once; the device has finished it when the next reading of the clock waits for the device.
    """

    items: int
    work: Callable[[], object]


@dataclass(frozen=True)
class Contest:
    """Ours and the reference, built and ready."""

    ours: Contender
    reference: Contender


@dataclass(frozen=True)
class Benchmark:
    """What is measured.

    Attributes:
        title: what is done.
        reference: what it is measured against.
        unit: of an item, in the plural.
        prepare: builds both contenders.
    """

    title: str
    reference: str
    unit: str
    prepare: Callable[[Setting], Contest]


@dataclass(frozen=True)
class Result:
    """What a contest gave.

    Attributes:
        ours: median items per second.
        reference: likewise.
        ratio: median over the turns of our rate over the reference's in the same turn.
        spread: the least and the largest ratio of a turn.
        turns: how often each was timed.
    """

    ours: float
    reference: float
    ratio: float
    spread: tuple[float, float]
    turns: int


def hold(contest: Contest, *, turns: int, device: torch.device, tick: Callable[[], None]) -> Result:
    """Time both contenders in turns, each once untimed before; who goes first alternates.

    Args:
        tick: called after the warm-up and after every turn.
    """
    contenders = (contest.ours, contest.reference)
    for contender in contenders:
        _seconds(contender, device)
    tick()
    rates: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns):
        for index in (0, 1) if turn % 2 == 0 else (1, 0):
            rates[index].append(contenders[index].items / _seconds(contenders[index], device))
        tick()
    ratios = [ours / reference for ours, reference in zip(*rates, strict=True)]
    return Result(
        ours=statistics.median(rates[0]),
        reference=statistics.median(rates[1]),
        ratio=statistics.median(ratios),
        spread=(min(ratios), max(ratios)),
        turns=turns,
    )


def _seconds(contender: Contender, device: torch.device) -> float:
    _wait_for(device)
    start = time.perf_counter()
    contender.work()
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
