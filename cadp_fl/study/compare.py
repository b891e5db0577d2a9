"""One study at several epsilons, over several seeds: one run a cell, and one comparison of all."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cadp_fl.config import StudyConfig, dump_study, dump_tree, load_study
from cadp_fl.data.fingerprint import Fingerprint
from cadp_fl.data.partition import SiteData
from cadp_fl.ending import uninterrupted
from cadp_fl.errors import CadpError, InputError
from cadp_fl.evaluation.utility import Metrics, evaluate, metrics_of
from cadp_fl.federated.basis import Basis
from cadp_fl.federated.checkpoint import CHECKPOINT, Checkpoint
from cadp_fl.federated.methods.base import Method
from cadp_fl.federated.recorder import Watcher
from cadp_fl.json_text import parse_json
from cadp_fl.report.comparison import Cell, CellResult, Comparison, comparison_json
from cadp_fl.report.comparison_page import CELLS, store_comparison, write_comparison
from cadp_fl.study.engine import check_engine
from cadp_fl.study.estimate import START_SECONDS
from cadp_fl.study.run import check_same_study, check_study, fingerprints, make_run_folder, run_study, settled

__all__ = ["RunCell", "Turn", "compare_study", "constant_metrics"]

RunCell = Callable[..., dict[str, Any]]
"""`run_study`, or what stands for it."""


@dataclass(frozen=True)
class Turn:
    """A cell's turn to run.

    Attributes:
        cell: which.
        number: of the cell, from 1.
        of: number of all cells.
        elapsed: seconds since the comparison was begun, or taken up again.
        left: seconds that this cell and all after it will take, if they take what those before took; None before any.
    """

    cell: Cell
    number: int
    of: int
    elapsed: float
    left: float | None


def compare_study(
    config: Path,
    output: Path,
    overrides: Sequence[str] = (),
    *,
    epsilons: Iterable[float] = (),
    seeds: int | Iterable[int] = 1,
    watching: Callable[[Turn], AbstractContextManager[Watcher]],
    resume: bool = False,
    run_cell: RunCell = run_study,
) -> dict[str, Any]:
    """Run a study at every epsilon and seed, fill the comparison's folder, and return what `comparison.json` holds.

    Methods that spend no budget run once a seed, in a cell of their own. Every cell is checked before the first is run.
    A cell that fails does not stop the others; it is in no mean.

    Args:
        epsilons: of the budget; the study's own by default.
        seeds: that govern splits and initial weights: those, or a number of them from the study's own on.
        watching: yields who watches a cell run.
        resume: go on with the comparison in the folder, from its last finished cell and that cell's last finished
            phase; it may get more epsilons and seeds.
        run_cell: runs one cell.

    Raises:
        InputError: the config, an epsilon, a seed or the folder is wrong; nothing was written.
        PolicyError: the policy that the sites state does not allow a cell; nothing was written.
    """
    study = load_study(config, overrides)
    grid = _Grid(
        config,
        tuple(overrides),
        study,
        tuple(sorted({float(epsilon) for epsilon in epsilons} or {study.budget.epsilon})),
        tuple(range(study.seed, study.seed + seeds) if isinstance(seeds, int) else sorted({*seeds})),
    )
    cells, majority, records = grid.check()
    check_engine(study)
    if resume:
        check_same_study(study, output.resolve() / "config.yaml")
        _check_grows(grid, output)
    else:
        make_run_folder(output)
        (output / "config.yaml").write_text(dump_study(study), encoding="utf-8")
    comparison = Comparison(
        study,
        grid.epsilons,
        grid.seeds,
        tuple(_left_by_an_earlier_attempt(cell, output) for cell in cells),
        majority,
    )
    for result in comparison.results:
        if (output / CELLS / result.cell.name / CHECKPOINT).exists() or result.status == "complete":
            grid.check_basis(result.cell, output, records[result.cell.seed])
    begun = time.monotonic()
    try:
        for cell in [result.cell for result in comparison.results if result.status == "pending"]:
            store_comparison(output, comparison_json(comparison))
            with watching(_turn(cell, comparison.results, begun)) as watch:
                ended = _run(grid, cell, output / CELLS / cell.name, watch, run_cell)
            if ended.status == "complete":  # the records may have been replaced since they were checked
                grid.check_basis(cell, output, records[cell.seed])
            results = tuple(ended if result.cell == cell else result for result in comparison.results)
            comparison = replace(comparison, results=results)
    finally:
        uninterrupted(lambda: write_comparison(output, comparison_json(comparison)))
    return comparison_json(comparison)


@dataclass(frozen=True)
class _Grid:
    """A study, and the epsilons and seeds that it runs at."""

    config: Path
    overrides: tuple[str, ...]
    study: StudyConfig
    epsilons: tuple[float, ...]
    seeds: tuple[int, ...]

    def check(self) -> tuple[list[Cell], dict[int, Metrics], dict[int, dict[str, Fingerprint]]]:
        """Check every cell, and return all in the order to run them.

        Beside them, by seed: the figures of a constant classifier, and the fingerprints of the sites' records.

        One seed after the other, so that an interrupted comparison has whole seeds, whose methods can be paired.
        """
        bound, free = self._check_epsilons()
        cells, majority, records = [], {}, {}
        for seed in self.seeds:
            study = load_study(self.config, self._at(self.epsilons[0], seed))
            study, sites, *_ = check_study(study)
            majority[seed], records[seed] = constant_metrics(sites), fingerprints(study, sites)
            cells += [Cell(None, seed, free)] if free else []
            cells += [Cell(epsilon, seed, bound) for epsilon in self.epsilons if bound]
        return cells, majority, records

    def check_basis(self, cell: Cell, output: Path, records: Mapping[str, Fingerprint]) -> None:
        """Check that the run of a cell has the records and all else that the comparison has now.

        Raises:
            InputError: it has not: its figures would stand in one table with figures that are not comparable.
        """
        study = settled(load_study(self.config, self.overrides_of(cell)))
        try:
            Checkpoint.check(output / CELLS / cell.name, Basis.of(study), records)
        except InputError as error:
            raise InputError(f"Cell {cell.name}: {error}") from error

    def _check_epsilons(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Check each epsilon, and return the methods that depend on it, and those that do not."""
        for epsilon in self.epsilons:
            methods = check_study(load_study(self.config, self._at(epsilon, self.seeds[0]))).methods
        free = tuple(method.name for method in methods if _spends_nothing(method))
        return tuple(method.name for method in methods if method.name not in free), free

    def overrides_of(self, cell: Cell) -> list[str]:
        """Return the overrides that make the study a cell."""
        methods = {name: self.study.methods[name] for name in cell.methods}
        text = dump_tree(methods, in_one_line=True).strip()
        epsilon = self.study.budget.epsilon if cell.epsilon is None else cell.epsilon
        return [*self._at(epsilon, cell.seed), f"methods={text}"]

    def _at(self, epsilon: float, seed: int) -> list[str]:
        return [*self.overrides, f"budget.epsilon={epsilon!r}", f"seed={seed}"]


def _spends_nothing(method: Method) -> bool:
    """Return whether a method spends no budget, since nothing of it is protected: epsilon changes nothing about it."""
    return not any(event.is_protected for event in method.events())


def constant_metrics(sites: Iterable[SiteData]) -> Metrics:
    """Return the figures of the classifier that always says the most frequent class of all sites' test records.

    A simulation may look at its records for this.
    """
    tests = [site.test for site in sites]
    labels, classes = np.concatenate([test.labels for test in tests]), tests[0].schema.classes
    counts = np.bincount(labels, minlength=len(classes))
    log_odds = np.tile(np.where(np.arange(len(classes)) == counts.argmax(), 1.0, -1.0), (len(labels), 1))
    return metrics_of(evaluate(log_odds, labels), classes)


def _check_grows(grid: _Grid, output: Path) -> None:
    """Check that a comparison which is resumed keeps the epsilons and seeds that it has.

    Raises:
        InputError: there is none, or one of them is left out.
    """
    try:
        before = parse_json((output / "comparison.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"An interrupted comparison left its comparison.json. '{output}' has none to be read; start a new one."
        ) from error
    for what, now in (("epsilon", grid.epsilons), ("seed", grid.seeds)):
        if gone := [value for value in before[f"{what}s"] if value not in now]:
            raise InputError(
                f"A comparison that is resumed keeps its {what}s, and may get more. It began with {what} {gone[0]}, "
                f"which is not among {', '.join(map(str, now))} now; give it again."
            )


def _left_by_an_earlier_attempt(cell: Cell, output: Path) -> CellResult:
    """Return a cell that an earlier attempt finished, or one that is pending."""
    try:
        summary = parse_json((output / CELLS / cell.name / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return CellResult(cell, "pending")
    if summary["status"] != "complete" or tuple(summary["methods"]) != cell.methods:
        return CellResult(cell, "pending")
    return CellResult(cell, "complete", summary=summary)


def _turn(cell: Cell, results: Sequence[CellResult], begun: float) -> Turn:
    number = [each.cell for each in results].index(cell) + 1
    return Turn(cell, number, len(results), time.monotonic() - begun, _seconds_left(results))


def _seconds_left(results: Sequence[CellResult]) -> float | None:
    """Return the seconds that pending cells will take, by the mean of the complete ones of their kind, or of all."""
    took: dict[bool, list[float]] = {True: [], False: []}
    for result in results:
        if result.status == "complete" and result.summary:
            took[result.cell.epsilon is None].append(START_SECONDS + sum(result.summary["seconds"].values()))
    every = took[True] + took[False]
    if not every:
        return None
    pending = [result.cell.epsilon is None for result in results if result.status == "pending"]
    return sum(statistics.fmean(took[free] or every) for free in pending)


def _run(grid: _Grid, cell: Cell, folder: Path, watch: Watcher, run_cell: RunCell) -> CellResult:
    """Run a cell, from its last finished phase if it was interrupted, and return how it ended."""
    resume = (folder / "config.yaml").is_file()
    try:
        summary = run_cell(grid.config, folder, grid.overrides_of(cell), watch=watch, resume=resume)
    except InputError:
        raise
    except CadpError as error:
        return CellResult(cell, "failed", str(error))
    gaps = (f"{gap['site']} was missing in {gap['phase']}: {gap['reason']}" for gap in summary["missing"])
    return CellResult(cell, summary["status"], "; ".join(gaps), summary)
