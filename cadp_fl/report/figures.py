"""The report's pictures, as data URIs of PNG and SVG, or as bytes."""

import base64
import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib
import matplotlib.image
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

__all__ = [
    "COLORS",
    "EpsilonLine",
    "curves",
    "epsilon_panels",
    "figure_style",
    "image_grid",
    "image_grid_png",
    "plain",
    "svg_uri",
]

COLORS = ("#1b6ca8", "#c8553d", "#588157", "#7b4b94", "#b08900", "#5c677d", "#00a6a6", "#d96fb0", "#8c564b", "#1f2933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
GRID = "#e3e6ea"
DODGE = 0.012
"""Distance between the error bars of two lines at one epsilon, as a share of the width of a panel."""


def image_grid(rows: Sequence[np.ndarray], columns: int) -> tuple[str, int, int]:
    """Return a grid of images as a PNG data URI, with its width and height in pixels; see `image_grid_png`."""
    data, width, height = image_grid_png(rows, columns)
    return _uri("image/png", data), width, height


def image_grid_png(rows: Sequence[np.ndarray], columns: int) -> tuple[bytes, int, int]:
    """Return a grid of images as a PNG, with its width and height in pixels; one row a class.

    Args:
        rows: uint8 (images, channels, height, width) each; what is missing to fill a row stays white.
        columns: images in a row.
    """
    _, channels, height, width = rows[0].shape
    gap = max(1, height // 14)
    canvas = np.full((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, dtype=np.uint8)
    for row, images in enumerate(rows):
        for column, image in enumerate(images[:columns]):
            top, left = row * (height + gap), column * (width + gap)
            canvas[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    pixels = np.repeat(canvas, 3, axis=2) if channels == 1 else canvas
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, pixels, format="png")
    return buffer.getvalue(), canvas.shape[1], canvas.shape[0]


def curves(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str, y_label: str) -> str:
    """Return lines of y over x by name, as an SVG data URI; every line is labelled at its end or in a legend."""
    with figure_style():
        figure = Figure(figsize=(5.4, 3.2), layout="constrained")
        axes = figure.add_subplot()
        for color, (name, (x, y)) in zip(_cycle(len(series)), series.items(), strict=True):
            axes.plot(x, y, color=color, marker="o", markersize=3.5, linewidth=1.6, label=name)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        plain(axes)
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=9)
        return svg_uri(figure)


@dataclass(frozen=True)
class EpsilonLine:
    """A figure of one method over epsilon.

    Attributes:
        name: for the legend.
        dashes: matplotlib's line style; says what the method guarantees.
        mean: at each epsilon, NaN where there is none.
        half_width: of the interval at each epsilon, NaN where there is none.
        flat: whether the method spends no budget, so that it is one value at every epsilon.
    """

    name: str
    dashes: str
    mean: Sequence[float]
    half_width: Sequence[float]
    flat: bool


def epsilon_panels(epsilons: Sequence[float], panels: Mapping[str, Sequence[EpsilonLine]]) -> tuple[str, bytes]:
    """Return one panel a figure, all shares, over epsilon on a log axis, as an SVG data URI and as a PNG's bytes.

    A line has the same colour and marker in all panels: those of its place among the lines of a panel.

    Args:
        epsilons: of the budget, in increasing order.
        panels: the lines of every figure by its name, the same methods in the same order in each.
    """
    columns = min(2, len(panels))
    height = -(-len(panels) // columns)
    with figure_style():
        figure = Figure(figsize=(4.8 * columns, 3.1 * height + 0.6), layout="constrained")
        for place, (name, lines) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(height, columns, place)
            low, high = epsilons[0] / 1.4, epsilons[-1] * 1.4
            bars = [line.name for line in lines if not line.flat]
            for index, line in enumerate(lines):
                steps = 0.0 if line.flat else bars.index(line.name) - (len(bars) - 1) / 2
                x = [epsilon * (high / low) ** (DODGE * steps) for epsilon in epsilons]
                _draw(axes, line, index, x, (low, high))
            axes.set_xscale("log")
            axes.set_xlim(low, high)
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xticks(list(epsilons), [f"{epsilon:g}" for epsilon in epsilons])
            axes.set_xlabel("epsilon of the budget")
            axes.set_ylabel(name)
            bottom, top = axes.get_ylim()
            axes.set_ylim(max(bottom, 0.0), min(top, 1.005))  # an interval may go beyond what a figure can be
            plain(axes)
        handles = dict(zip(*reversed(figure.axes[0].get_legend_handles_labels()), strict=True))
        names = [line.name for line in next(iter(panels.values()))]
        ordered = [handles[name] for name in names]
        figure.legend(ordered, names, loc="outside lower center", ncol=min(3, len(names)), frameon=False, fontsize=9)
        return svg_uri(figure), _png(figure)


def figure_style(font_size: float = 10) -> AbstractContextManager[None]:
    """Return the style that all pictures share."""
    return matplotlib.rc_context({"svg.hashsalt": "cadp-fl", "font.size": font_size, "font.family": "DejaVu Sans"})


def _draw(axes: Axes, line: EpsilonLine, index: int, x: Sequence[float], span: tuple[float, float]) -> None:
    color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
    mean, half = np.asarray(line.mean, dtype=float), np.asarray(line.half_width, dtype=float)
    style: dict[str, Any] = {"color": color, "linestyle": line.dashes, "linewidth": 1.6, "label": line.name}
    if line.flat:
        axes.plot(span, [mean[0]] * 2, **style)
        axes.fill_between(span, mean[0] - half[0], mean[0] + half[0], color=color, alpha=0.13, linewidth=0)
    else:
        axes.errorbar(x, mean, yerr=half, marker=marker, markersize=4.5, capsize=3, elinewidth=1.1, **style)


def plain(axes: Axes) -> None:
    """Leave out what a picture does not need."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.8)


def svg_uri(figure: Figure) -> str:
    """Return a picture as an SVG data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _uri("image/svg+xml", buffer.getvalue())


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140)
    return buffer.getvalue()


def _cycle(count: int) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(count)]


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
