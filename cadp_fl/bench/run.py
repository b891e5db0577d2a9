"""All benchmarks, by name, and a run of some of them."""

import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import cadp_fl
from cadp_fl.bench.aggregation import AGGREGATION
from cadp_fl.bench.classifier import CLASSIFIER_TRAINING
from cadp_fl.bench.contest import Benchmark, Setting, hold
from cadp_fl.bench.dp_flows import DP_FLOW_OPACUS, DP_FLOW_TRAINING, DP_FLOW_TRAINING_LARGE
from cadp_fl.bench.flows import ENCODE_DECODE, FLOW_TRAINING, FLOW_TRAINING_SMALL
from cadp_fl.bench.noise import NOISE, NOISE_ON_GRID
from cadp_fl.bench.release import RELEASE, RELEASE_BY_PRIVUNIT, RELEASE_ON_GRID
from cadp_fl.device import resolve_device
from cadp_fl.errors import ConfigError

__all__ = ["BENCHMARKS", "Tick", "run_benchmarks", "steps_of"]

TURNS, QUICK_TURNS = 7, 1
LIBRARIES = ("torch", "numpy", "FrEIA", "opacus", "cryptography")

BENCHMARKS: dict[str, Benchmark] = {
    "flow-training": FLOW_TRAINING,
    "flow-training-small": FLOW_TRAINING_SMALL,
    "dp-flow-training": DP_FLOW_TRAINING,
    "dp-flow-training-large": DP_FLOW_TRAINING_LARGE,
    "dp-flow-opacus": DP_FLOW_OPACUS,
    "encode-decode": ENCODE_DECODE,
    "release": RELEASE,
    "release-on-grid": RELEASE_ON_GRID,
    "release-by-privunit": RELEASE_BY_PRIVUNIT,
    "classifier-training": CLASSIFIER_TRAINING,
    "aggregation": AGGREGATION,
    "noise": NOISE,
    "noise-on-grid": NOISE_ON_GRID,
}

Tick = Callable[[str], None]


def steps_of(names: Sequence[str], *, quick: bool) -> int:
    """Return how often a run of these benchmarks calls `tick`."""
    return len(set(names or BENCHMARKS)) * (1 + (QUICK_TURNS if quick else TURNS))


def run_benchmarks(
    names: Sequence[str] = (), *, device: str = "auto", quick: bool = False, threads: int | None = None, tick: Tick
) -> dict[str, Any]:
    """Run some benchmarks, or all, and return what they gave and on what, ready for JSON.

    Args:
        names: of benchmarks; all of them if empty.
        device: auto, cpu, cuda or cuda:<index>.
        quick: do just enough to show that it works.
        threads: of torch on the CPU; torch's own choice if None.
        tick: called with the name of the benchmark after each of its steps.

    Raises:
        ConfigError: there is no such benchmark, device or number of threads.
    """
    for name in names:
        if name not in BENCHMARKS:
            raise ConfigError(f"Unknown benchmark '{name}'. Choose one of: {', '.join(BENCHMARKS)}.")
    if threads is not None and threads < 1:
        raise ConfigError(f"--threads is at least 1. Found {threads}; leave it out for torch's own choice.")
    chosen = resolve_device(device)
    with _threads(threads or torch.get_num_threads()):
        return {
            "schema_version": 1,
            "device": torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else _processor(),
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "quick": quick,
            "software": {"cadp-fl": cadp_fl.__version__, "python": platform.python_version()}
            | {library: version(library) for library in LIBRARIES},
            "benchmarks": {
                name: _run(name, BENCHMARKS[name], chosen, quick=quick, tick=tick)
                for name in dict.fromkeys(names or BENCHMARKS)
            },
        }


def _run(name: str, benchmark: Benchmark, device: torch.device, *, quick: bool, tick: Tick) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="cadp-fl-bench-") as folder:
        contest = benchmark.prepare(Setting(device, quick, Path(folder)))
        result = hold(contest, turns=QUICK_TURNS if quick else TURNS, device=device, tick=lambda: tick(name))
    described = {"title": benchmark.title, "against": benchmark.reference, "unit": f"{benchmark.unit}/s"}
    return described | asdict(result)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _processor() -> str:
    """Return the processor's name, or its architecture where the system does not give it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
