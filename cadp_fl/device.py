"""Which device computes, in what precision, and how much at once. Chosen at the edge; from there on, tensors decide."""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from cadp_fl.errors import ConfigError, MemoryLimitError

__all__ = ["PhysicalBatch", "reduced_precision", "resolve_device", "swift_batch"]

CACHE_BYTES = 8 << 20
"""Bytes of one layer's output that a processor still handles at full speed. Beyond, it waits for memory, and the
allocator gives pages back to the system only to fetch and clear them again: up to a third of a step."""

Result = TypeVar("Result")


def resolve_device(name: str) -> torch.device:
    """Return the device that a config names, and keep it to full float32.

    A flow's inverse and the norm of a record hold in float32 alone: TF32, which keeps 10 bits, is off but inside
    `reduced_precision`.

    Args:
        name: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:<index>`.

    Raises:
        ConfigError: the name is unknown, or this machine has no such device.
    """
    if name != "auto" and not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:<index>. Found '{name}'.")
    found = torch.cuda.device_count() if name != "cpu" and torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not found):
        return torch.device("cpu")
    index = int(name.partition(":")[2] or 0)
    if index >= found:
        raise ConfigError(
            f"device '{name}' needs GPU {index}. This process sees {found}; use auto or cpu (in a simulation, a site "
            "sees GPUs only where sites.gpus_per_client is above zero)."
        )
    _allow_tf32(False)
    return torch.device("cuda", index)


@contextmanager
def reduced_precision() -> Iterator[None]:
    """Let a GPU round the factors of products to TF32 inside the block.

    For gradient steps alone, which need no inverse: a weight that was trained this way is a weight like any other.
    Nothing is encoded, decoded or clipped for privacy in here.
    """
    before = torch.backends.cuda.matmul.allow_tf32
    _allow_tf32(torch.cuda.is_available())
    try:
        yield
    finally:
        _allow_tf32(before)


def swift_batch(records: int, network: nn.Module, compute_one: Callable[[], object]) -> int:
    """Return how many of some records to compute at once: all on a GPU, and as many as fit its cache on a processor.

    The parts are about equal. Nothing but the speed depends on it.

    Args:
        records: at most so many.
        network: whose layers compute.
        compute_one: takes one record, of no matter what, through them.
    """
    if next(network.parameters()).device.type != "cpu":
        return records
    fitting = max(1, CACHE_BYTES // _widest_output(network, compute_one))
    return math.ceil(records / math.ceil(records / fitting))


@torch.no_grad()
def _widest_output(network: nn.Module, compute: Callable[[], object]) -> int:
    """Return the bytes of the largest tensor that a layer gives while `compute` runs, at least 1."""
    sizes = [1]

    def note(layer: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, torch.Tensor):
            sizes.append(output.numel() * output.element_size())

    hooks = [layer.register_forward_hook(note) for layer in network.modules()]
    was_training = network.training
    network.eval()
    try:
        compute()
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return max(sizes)


def _allow_tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


class PhysicalBatch:
    """How many records are computed at once; halved whenever the device runs out of memory.

    The result never depends on it: what is drawn at random, and what is averaged, belongs to the whole.

    Args:
        records: at most so many at once, to begin with.
    """

    def __init__(self, records: int) -> None:
        self.records = records

    def each(
        self, count: int, compute: Callable[[slice], Result], *, restart: Callable[[], None] = lambda: None
    ) -> list[Result]:
        """Return `compute(part)` for parts that make up `slice(0, count)`, in order.

        Args:
            compute: may be called again for the same records after it ran out of memory; draws nothing at random.
            restart: undoes what the parts before had accumulated, since all are computed again.

        Raises:
            MemoryLimitError: a single record does not fit.
        """
        while True:
            parts = [slice(start, min(start + self.records, count)) for start in range(0, count, self.records)]
            try:
                return [compute(part) for part in parts]
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                if self.records == 1:
                    raise MemoryLimitError(
                        "A record must fit into memory. One does not, on its own; use a smaller network, fewer sites "
                        "at a time (a larger sites.gpus_per_client), or device: cpu."
                    ) from None
            self.records = max(1, min(self.records, count) // 2)
            restart()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
