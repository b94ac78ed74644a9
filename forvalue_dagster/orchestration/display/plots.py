"""Plots for the Dagster UI: small pictures in metadata, readable in light and dark mode."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import dagster as dg
import polars as pl

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK = "#808792"
_COLOURS = ("#4f8ff7", "#f2994a", "#27ae60", "#9b51e0")


_DRAWN: ContextVar[bool] = ContextVar("drawn", default=True)


@contextmanager
def without_plots() -> Iterator[None]:
    """Draw nothing inside: a run over many shards would fill the event log with pictures."""
    token = _DRAWN.set(False)
    try:
        yield
    finally:
        _DRAWN.reset(token)


def histogram(
    series: Mapping[str, pl.Series],
    *,
    title: str,
    unit: str,
    marks: Mapping[str, float] | None = None,
) -> dg.MetadataValue:
    """Draw several distributions in one plot, with vertical lines, for the UI.

    Args:
        series: name → values; nulls are left out.
        title: title of the plot.
        unit: label of the horizontal axis.
        marks: name → position of a vertical line.

    Returns:
        A picture, or null inside `without_plots`.
    """
    if not _DRAWN.get():
        return dg.MetadataValue.null()
    figure = histogram_figure(series, title=title, unit=unit, marks=marks)
    buffer = io.BytesIO()
    with _names_as_they_are(figure):
        figure.savefig(buffer, format="png", transparent=True)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return dg.MetadataValue.md(f"![{title}](data:image/png;base64,{encoded})")


def histogram_figure(
    series: Mapping[str, pl.Series],
    *,
    title: str,
    unit: str,
    marks: Mapping[str, float] | None = None,
) -> Figure:
    """Draw several distributions in one plot; arguments as in `histogram`."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _axes(title, 2.8)
    values = {name: column.drop_nulls().to_numpy() for name, column in series.items()}
    values = {name: column for name, column in values.items() if len(column)}
    if values:
        axes.hist(
            list(values.values()),
            bins=30,
            stacked=True,
            color=_COLOURS[: len(values)],
            label=[_short(name) for name in values],
        )
    for name, position in (marks or {}).items():
        axes.axvline(position, color=_INK, linestyle="--", linewidth=1, label=_short(name))
    axes.set_xlabel(unit, color=_INK)
    axes.set_ylabel("rows", color=_INK)
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    if len(values) + len(marks or {}) > 1:
        axes.legend(frameon=False, labelcolor=_INK, fontsize=8)
    return figure


def interval_figure(
    intervals: Mapping[str, tuple[float, float, float]], *, title: str, unit: str, limit: float
) -> Figure:
    """Draw estimates with their intervals, one row each, and a limit.

    Args:
        intervals: name → (lower end, estimate, upper end).
        title: title of the plot.
        unit: label of the horizontal axis.
        limit: position of a vertical line.
    """
    figure, axes = _axes(title, 0.9 + 0.28 * max(len(intervals), 1))
    for line, (lower, estimate, upper) in enumerate(reversed(list(intervals.values()))):
        colour = _COLOURS[1] if lower > limit else _COLOURS[0]
        axes.plot([lower, upper], [line, line], color=colour, linewidth=2)
        axes.plot([estimate], [line], "o", color=colour, markersize=5)
    axes.axvline(limit, color=_INK, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(intervals)), [_short(name) for name in reversed(list(intervals))])
    axes.set_xlim(left=0)
    axes.set_xlabel(unit, color=_INK)
    return figure


def as_svg(figure: Figure) -> str:
    """Return a figure as SVG for a page; the same figure gives the same text."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    settings = rc_context({"svg.hashsalt": "forvalue", "svg.fonttype": "none"})
    with settings, _names_as_they_are(figure):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue().partition("<svg")[2].join(("<svg", ""))


@contextmanager
def _names_as_they_are(figure: Figure) -> Iterator[None]:
    """Make names inside plain text: a dollar sign does not start a formula."""
    from matplotlib import rc_context
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with rc_context({"text.parse_math": False}):
        yield


def _short(name: str, length: int = 40) -> str:
    """Shorten a name in its middle: a long one would leave no room for the plot."""
    kept = length // 2
    return name if len(name) <= length else f"{name[:kept]}…{name[1 - kept :]}"


def _axes(title: str, height: float) -> tuple[Figure, Axes]:
    # The object interface: pyplot keeps every figure of a long-lived process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(_short(title, 70), color=_INK, fontsize=10, loc="left")
    axes.tick_params(colors=_INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_INK)
    return figure, axes
