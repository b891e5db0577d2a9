"""`comparison.json`: one study at several epsilons, over several seeds, with intervals.

A cell is one run. What is said about privacy is copied from the cells' summaries. A cell that is not complete is named,
and none of its figures is in a mean.
"""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cadp_fl.config import StudyConfig
from cadp_fl.evaluation.intervals import t_interval
from cadp_fl.evaluation.utility import Metrics
from cadp_fl.privacy.claims import GUARANTEES

__all__ = ["CONFIDENCE", "FIGURES", "KEPT", "Cell", "CellResult", "Comparison", "cell_name", "comparison_json"]

SCHEMA_VERSION = 1
CONFIDENCE = 0.95
FIGURES = ("accuracy", "balanced_accuracy", "auroc", "macro_f1")
_CLAIM = (
    "guarantee",
    "epsilon",
    "epsilon_add_remove",
    "epsilon_if_flow_were_fixed",
    "epsilon_if_flow_were_fixed_add_remove",
    "delta",
    "relation",
    "against",
    "unprotected",
    "declared",
    "caution",
)
"""What a summary says about a method's privacy, by the summary's names."""

KEPT = ("image_correlation", "latent_correlation", "label_agreement", "linear_released", "quadratic_released")
"""Figures of a release's fidelity; of the last two, the balanced accuracy."""


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Attributes:
        epsilon: of the budget; None for the methods that spend none, which run once a seed.
        seed: of the study.
        methods: that are run, in order.
    """

    epsilon: float | None
    seed: int
    methods: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the cell, and of its run folder."""
        return cell_name(self.epsilon, self.seed)


def cell_name(epsilon: float | None, seed: int) -> str:
    """Return `eps-3-seed-1`, or `seed-1` for the methods that spend no budget."""
    return f"seed-{seed}" if epsilon is None else f"eps-{epsilon:.15g}-seed-{seed}"


@dataclass(frozen=True)
class CellResult:
    """How a cell ended, or that it did not yet.

    Attributes:
        cell: which.
        status: `incomplete` if a site was lost above the quorum, `failed` if the run stopped, `pending` before its end.
        reason: why it is not complete, where something went wrong.
        summary: of the run, as its `summary.json` has it; None where there is none that can be relied on.
    """

    cell: Cell
    status: Literal["complete", "incomplete", "failed", "pending"]
    reason: str = ""
    summary: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Comparison:
    """A study's cells, and what is known of them by now.

    Attributes:
        study: its config.
        epsilons: in increasing order.
        seeds: in increasing order.
        results: of every cell, in the order in which they run.
        majority: figures of the classifier that always says the test records' most frequent class, by seed.
    """

    study: StudyConfig
    epsilons: tuple[float, ...]
    seeds: tuple[int, ...]
    results: tuple[CellResult, ...]
    majority: Mapping[int, Metrics]


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as JSON values."""
    study, results = comparison.study, comparison.results
    summaries = [result.summary for result in results if result.status == "complete" and result.summary]
    first: Mapping[str, Any] = summaries[0] if summaries else {}
    return {
        "schema_version": SCHEMA_VERSION,
        "name": study.name,
        "simulation": True,
        "status": "complete" if len(summaries) == len(results) else "incomplete",
        "confidence": CONFIDENCE,
        "epsilons": list(comparison.epsilons),
        "seeds": list(comparison.seeds),
        "sites": study.sites.count,
        "metrics": study.evaluation.metrics,
        "delta": first["budget"]["delta"] if first else None,
        **{key: first.get(key) for key in ("dataset", "noise", "relation", "unit", "software")},
        "same_software": all(summary["software"] == first["software"] for summary in summaries),
        "cells": [_cell(result) for result in results],
        "majority": _figures({seed: metrics.to_json() for seed, metrics in comparison.majority.items()}),
        "tables": [_table(comparison, epsilon) for epsilon in comparison.epsilons],
    }


def _cell(result: CellResult) -> dict[str, Any]:
    cell, summary = result.cell, result.summary or {}
    return {
        "cell": cell.name,
        "epsilon": cell.epsilon,
        "seed": cell.seed,
        "methods": list(cell.methods),
        "status": result.status,
        **({"reason": result.reason} if result.reason else {}),
        "resumed": bool(summary.get("resumed")),
        "seconds": round(sum(summary["seconds"].values()), 3) if summary else None,
    }


def _table(comparison: Comparison, epsilon: float) -> dict[str, Any]:
    """Return the rows of one epsilon, and by how much the first method is above each other."""
    runs = {name: _complete(comparison.results, epsilon, name) for name in comparison.study.methods}
    rows = {name: _rows(name, by_seed) for name, by_seed in runs.items()}
    first, *others = rows
    free = {name for result in comparison.results if result.cell.epsilon is None for name in result.cell.methods}
    return {
        "epsilon": epsilon,
        "methods": {name: _row(name, runs[name], rows[name]) | {"once_a_seed": name in free} for name in rows},
        "kept": {name: kept for name, by_seed in rows.items() if (kept := _kept(by_seed))},
        "first": first,
        "differences": {name: _difference(rows[first], rows[name]) for name in others},
    }


def _complete(results: Iterable[CellResult], epsilon: float, method: str) -> dict[int, CellResult]:
    """Return the complete runs of a method at an epsilon, or of one that spends none at any, by seed."""
    return {
        result.cell.seed: result
        for result in results
        if result.status == "complete" and result.cell.epsilon in (epsilon, None) and method in result.cell.methods
    }


def _rows(method: str, runs: Mapping[int, CellResult]) -> dict[int, Mapping[str, Any]]:
    """Return what the summaries of runs say of a method, by seed."""
    return {seed: (result.summary or {})["methods"][method] for seed, result in runs.items()}


def _row(method: str, runs: Mapping[int, CellResult], rows: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    row = {"seeds": sorted(rows), "figures": _figures(rows)}
    if not rows:
        return row
    weakest = max(rows, key=lambda seed: _weakness(rows[seed]))
    return row | {
        "seconds": statistics.fmean(_seconds(method, result) for result in runs.values()),
        "classifier": rows[weakest]["classifier"],
        "claim_of": runs[weakest].cell.name,
        **{key: rows[weakest][key] for key in _CLAIM if key in rows[weakest]},
    }


def _weakness(row: Mapping[str, Any]) -> tuple[int, float]:
    """Return how weak a claim is: a mean over seeds claims no more than the weakest of its runs."""
    return GUARANTEES.index(row["guarantee"]), row["epsilon"] or row["epsilon_if_flow_were_fixed"] or 0.0


def _seconds(method: str, result: CellResult) -> float:
    """Return the wall time of a method's own phases."""
    phases = (result.summary or {})["seconds"]
    return float(sum(seconds for phase, seconds in phases.items() if phase.split("/")[0] == method))


def _figures(rows: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean, interval and values of each figure over seeds; a run in which it is undefined is not in its mean."""
    return {name: _over_seeds({seed: row[name] for seed, row in sorted(rows.items())}) for name in FIGURES}


def _kept(rows: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what releases keep of their records, over seeds; empty where no run measured it."""
    measured = {seed: row["fidelity"] for seed, row in sorted(rows.items()) if "fidelity" in row}
    if not measured:
        return {}
    plain = {name: {seed: each[name] for seed, each in measured.items()} for name in KEPT[:3]}
    trained = {name: {seed: each[name]["balanced_accuracy"] for seed, each in measured.items()} for name in KEPT[3:]}
    return {name: _over_seeds(values) for name, values in (plain | trained).items()}


def _difference(ours: Mapping[int, Mapping[str, Any]], theirs: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Return our figures less theirs, seed by seed: of one seed, both have the same split and the same test records."""
    seeds = sorted(set(ours) & set(theirs))
    return {
        name: _over_seeds({seed: _minus(ours[seed][name], theirs[seed][name]) for seed in seeds}) for name in FIGURES
    }


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _over_seeds(values: Mapping[int, float | None]) -> dict[str, Any]:
    defined = [value for value in values.values() if value is not None]
    found = asdict(t_interval(defined, CONFIDENCE)) if defined else {"mean": None, "half_width": None, "runs": 0}
    return {**found, "values": {str(seed): value for seed, value in values.items()}}
