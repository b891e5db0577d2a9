"""What a report shows of rows: every column's distribution, and how columns go together, real against released."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cadp_fl.data.codec import codec_of
from cadp_fl.data.columns import Column
from cadp_fl.data.schema import Dataset
from cadp_fl.report.figures import COLORS, figure_style, plain, svg_uri

__all__ = ["associations", "marginals", "rows_as_text"]

MAX_COLUMNS, MAX_CATEGORIES, BINS = 30, 12, 16
"""Columns and categories that a picture shows, and the steps that numbers are counted in."""

_ACROSS = 5


def marginals(parts: Sequence[tuple[str, Dataset]]) -> str:
    """Return a panel for each column, with its distribution in each set of rows, as an SVG data URI.

    Args:
        parts: sets of rows of one schema, by name: real and released ones, say.
    """
    columns = parts[0][1].schema.columns[:MAX_COLUMNS]
    across = min(_ACROSS, len(columns))
    down = -(-len(columns) // across)
    with figure_style(font_size=8):
        figure = Figure(figsize=(2.1 * across, 1.55 * down + 0.4), layout="constrained")
        for place, column in enumerate(columns):
            axes = figure.add_subplot(down, across, place + 1)
            for number, (name, rows) in enumerate(parts):
                _draw(axes, column, rows.records[:, place], name, number, len(parts))
            axes.set_title(column.name if len(column.name) < 26 else f"{column.name[:24]}...", fontsize=8)
            axes.set_yticks([])
            plain(axes)
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncol=len(names), frameon=False)
        return svg_uri(figure)


def associations(parts: Sequence[tuple[str, Dataset]]) -> str:
    """Return the correlations of all of a row's numbers and its label, one square for each set of rows, as SVG."""
    with figure_style(font_size=8):
        figure = Figure(figsize=(3.1 * len(parts) + 0.6, 3.2), layout="constrained")
        for place, (name, rows) in enumerate(parts, start=1):
            axes = figure.add_subplot(1, len(parts), place)
            shown = axes.imshow(_correlations(rows), vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
            axes.set_title(name, fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
        figure.colorbar(shown, ax=figure.axes, shrink=0.8, label="correlation")
        return svg_uri(figure)


def rows_as_text(rows: Dataset, count: int) -> list[list[str]]:
    """Return the first rows as a person reads them, the label last."""
    chosen = rows.records[:count]
    values = [column.values_of(codes) for column, codes in zip(rows.schema.columns, chosen.T, strict=True)]
    labels = [rows.schema.classes[label] for label in rows.labels[:count]]
    return [[*(_text(value) for value in row), label] for *row, label in zip(*values, labels, strict=True)]


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _draw(axes: Axes, column: Column, codes: np.ndarray, name: str, number: int, of: int) -> None:
    """Draw the distribution of one column in one set of rows."""
    color = COLORS[number % len(COLORS)]
    if column.has_bounds:
        known = codes[codes < column.steps]
        shares = np.histogram(known, BINS, (0, column.steps))[0] / max(1, len(codes))
        axes.stairs(shares, np.linspace(0, 1, BINS + 1), color=color, linewidth=1.3, label=name)
        ends = column.values_of(np.array([0, column.steps - 1]))
        axes.set_xticks([0, 1], [f"{end:.4g}" for end in ends])
        return
    counts = np.bincount(codes, minlength=column.codes)[:MAX_CATEGORIES] / max(1, len(codes))
    width = 0.8 / of
    places = np.arange(len(counts)) + (number - (of - 1) / 2) * width
    axes.bar(places, counts, width, color=color, label=name)
    names = [*column.categories, "missing"][: len(counts)]
    axes.set_xticks(range(len(counts)), [each if len(each) < 8 else f"{each[:6]}..." for each in names])
    axes.tick_params(axis="x", rotation=90 if len(counts) > 4 else 0, labelsize=6 if len(counts) > 4 else 7)


def _correlations(rows: Dataset) -> np.ndarray:
    """Return the correlations of a row's numbers and its label, float64 (numbers + 1,) * 2; 0 without variance."""
    numbers = codec_of(rows.schema).inputs(rows.records).double().numpy()
    whole = np.concatenate([numbers, rows.labels[:, None]], axis=1)
    apart = whole - whole.mean(axis=0)
    length = np.sqrt((apart**2).sum(axis=0))
    unit = np.divide(apart, length, out=np.zeros_like(apart), where=length > 0)
    correlations: np.ndarray = unit.T @ unit
    return correlations
