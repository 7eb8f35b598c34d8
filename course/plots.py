"""One quiet matplotlib style for the whole course, readable on JupyterLab's light and dark pages.

Figures carry their own pale background, so that text and lines keep their contrast whatever page they are on.
Colours are those of Okabe and Ito, which people with any colour vision can tell apart.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
"""The order in which lines take their colours."""

_PAPER = "#FBFBF9"
_INK = "#2B2B2B"


def use_style() -> None:
    """Set the course's matplotlib style for this process."""
    import matplotlib

    matplotlib.rcParams.update(
        {
            "figure.figsize": (6.4, 3.4),
            "figure.dpi": 100,
            "figure.facecolor": _PAPER,
            "savefig.facecolor": _PAPER,
            "figure.constrained_layout.use": True,
            "axes.facecolor": _PAPER,
            "axes.edgecolor": "#8A8F98",
            "axes.labelcolor": _INK,
            "axes.titlecolor": _INK,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "axes.labelsize": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
            "grid.color": "#DFE1E0",
            "grid.linewidth": 0.8,
            "text.color": _INK,
            "xtick.color": _INK,
            "ytick.color": _INK,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "legend.frameon": False,
            "legend.fontsize": 9,
            "lines.linewidth": 1.8,
            "image.cmap": "viridis",
        }
    )


def figure(rows: int = 1, columns: int = 1, **kwargs: Any) -> tuple[Any, Any]:
    """Return ``(figure, axes)`` in the course's style; takes what ``matplotlib.figure.Figure.subplots`` takes.

    The figure belongs to no window or global state, so nothing has to be closed: show it with `show`.
    """
    from matplotlib.figure import Figure

    use_style()
    size = kwargs.pop("figsize", None)
    made = Figure(figsize=size)
    return made, made.subplots(rows, columns, **kwargs)


def png(fig: Any) -> bytes:
    """Return `fig` as a PNG, with no date or version in it, so that equal figures are equal bytes."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def show(fig: Any, alt: str = "") -> None:
    """Display `fig` as a static picture; `alt` says in words what it shows, for those who cannot see it."""
    import base64

    from IPython.display import display

    data = {"image/png": base64.b64encode(png(fig)).decode(), "text/plain": alt or "figure"}
    display(data, raw=True, metadata={"image/png": {"alt": alt}} if alt else {})


def beside(draw: Callable[..., Any], static: dict[str, Any], alt: str = "", **controls: Any) -> Any:
    """Show a static figure for the reader and, under it, the same drawing with widgets for the one who plays.

    Args:
        draw: makes and returns a figure from keyword arguments.
        static: the arguments of the static figure; it is all that a page without a kernel shows.
        alt: says in words what the static figure shows.
        controls: one ipywidget (or an abbreviation that ``ipywidgets.interactive`` knows) for each argument.

    Returns:
        the widget, already displayed; tests and callers may move its children.
    """
    import ipywidgets
    from IPython.display import display

    show(draw(**static), alt)
    widget = ipywidgets.interactive(lambda **values: show(draw(**values)), **controls)
    display(widget)
    return widget
