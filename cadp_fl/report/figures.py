"""The report's pictures, as data URIs of PNG and SVG."""

import base64
import io
from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.image
import numpy as np
from matplotlib.figure import Figure

__all__ = ["COLORS", "curves", "image_grid"]

COLORS = ("#1b6ca8", "#c8553d", "#588157", "#7b4b94", "#b08900", "#5c677d")


def image_grid(rows: Sequence[np.ndarray], columns: int) -> tuple[str, int, int]:
    """Return a grid of images as a PNG data URI, with its width and height in pixels; one row a class.

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
    return _uri("image/png", buffer.getvalue()), canvas.shape[1], canvas.shape[0]


def curves(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str, y_label: str) -> str:
    """Return lines of y over x by name, as an SVG data URI; every line is labelled at its end or in a legend."""
    with matplotlib.rc_context({"svg.hashsalt": "cadp-fl", "font.size": 10, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(5.4, 3.2), layout="constrained")
        axes = figure.add_subplot()
        for color, (name, (x, y)) in zip(_cycle(len(series)), series.items(), strict=True):
            axes.plot(x, y, color=color, marker="o", markersize=3.5, linewidth=1.6, label=name)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e3e6ea", linewidth=0.8)
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=9)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _uri("image/svg+xml", buffer.getvalue())


def _cycle(count: int) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(count)]


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
