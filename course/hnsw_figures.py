"""The pictures of notebook 08: maps with walks, layers, a search step by step, and curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from course import plots
from course.hnsw_lesson import MAP, Curve, Links, Walk
from hnsw import HNSWSimple, Step

_DOT, _LINK, _INK = "#A9AEB4", "#C9CDD1", "#2B2B2B"
BLUE, ORANGE, GREEN, PINK, YELLOW = plots.COLOURS[:5]


def _links(axes: Any, X: np.ndarray, pairs: Sequence[tuple[int, int]], **style: Any) -> None:
    from matplotlib.collections import LineCollection

    axes.add_collection(
        LineCollection([X[list(pair)] for pair in pairs], **({"colors": _LINK, "linewidths": 0.6} | style))
    )


def _map(axes: Any, X: np.ndarray, title: str) -> None:
    axes.scatter(*X.T, s=5, color=_DOT, zorder=2)
    axes.set(xlim=(-15, MAP + 15), ylim=(-15, MAP + 15), aspect="equal", xticks=[], yticks=[], title=title)
    axes.grid(False)


def _query(axes: Any, query: np.ndarray) -> None:
    axes.scatter(*query, marker="*", s=170, color=YELLOW, edgecolor=_INK, linewidth=0.8, zorder=6)


def draw_walks(X: np.ndarray, query: np.ndarray, walks: dict[str, tuple[Links, Walk]]) -> Any:
    """One map for each walk, by title: all links, the walk from its start (a square) to its end (a ring), the query a star."""
    figure, panels = plots.figure(1, len(walks), figsize=(3.7 * len(walks), 4.0), squeeze=False)
    for axes, (title, (links, walk)) in zip(panels[0], walks.items()):
        _map(axes, X, title)
        _links(axes, X, [(a, b) for a, row in enumerate(links) for b in row])
        way = X[walk.path]
        axes.plot(*way.T, color=ORANGE, linewidth=1.8, marker="o", markersize=3, zorder=4)
        axes.scatter(*way[0], marker="s", s=45, color=ORANGE, edgecolor=_INK, zorder=5)
        axes.scatter(*way[-1], s=90, facecolor="none", edgecolor=ORANGE, linewidth=2, zorder=5)
        _query(axes, query)
    return figure


def draw_growth(sizes: Sequence[int], distances: dict[str, Sequence[float]]) -> Any:
    """Distances computed for a query over the number of points, both on logarithmic axes."""
    figure, axes = plots.figure(figsize=(6.6, 3.6))
    for (label, values), colour, marker in zip(distances.items(), (plots.COLOURS[6], ORANGE, BLUE), "^so"):
        axes.plot(sizes, values, marker=marker, color=colour, label=label)
        axes.annotate(
            f"{values[-1]:,.0f}", (sizes[-1], values[-1]), xytext=(7, -3), textcoords="offset points", fontsize=9
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set(
        xlabel="points", ylabel="distances for a query", title="How the effort grows", xlim=(None, sizes[-1] * 1.5)
    )
    axes.legend(loc="upper left")
    return figure


def draw_layers(index: HNSWSimple, most: int = 4) -> Any:
    """The layers of a map's index side by side, the highest first; at most `most`, counted from layer 0."""
    shown = list(range(min(most, len(index.graph)) - 1, -1, -1))
    figure, panels = plots.figure(1, len(shown), figsize=(2.9 * len(shown), 3.3), squeeze=False)
    for axes, layer in zip(panels[0], shown):
        links = index.graph[layer]
        _map(axes, index.vectors[list(links)], f"layer {layer}: {len(links):,}")
        _links(axes, index.vectors, [(a, b) for a, row in links.items() for b in row])
    return figure


def draw_levels(shares: dict[str, Sequence[float]], layers: int = 12) -> Any:
    """The share of all nodes that each layer has, by a sampler's label; from layer 0 up."""
    figure, axes = plots.figure(figsize=(6.6, 3.4))
    for (label, values), marker in zip(shares.items(), "osv^D"):
        kept = [value for value in values[:layers] if value > 0]
        axes.plot(range(len(kept)), kept, marker=marker, label=label)
    axes.set_yscale("log")
    axes.set(xlabel="layer", ylabel="share of the nodes", title="How many nodes each layer has")
    axes.legend(loc="upper right")
    return figure


def draw_step(index: HNSWSimple, query: np.ndarray, trace: list[Step], step: int) -> Any:
    """One step of a search: left the map with the layer at hand, right how near each expanded node was, so far."""
    step = min(step, len(trace) - 1)
    now, X = trace[step], index.vectors
    figure, (left, right) = plots.figure(1, 2, figsize=(10.6, 4.9), width_ratios=(1.25, 1))
    layer = index.graph[now.layer]
    here = [each for each in trace[: step + 1] if each.layer == now.layer]
    before = [each.node for each in trace[:step] if each.layer > now.layer]
    new = f"{len(now.seen)} new neighbours" if len(now.seen) != 1 else "1 new neighbour"
    _map(left, X, f"Step {step}: layer {now.layer}, house {now.node}, {new}")
    _links(left, X, [(a, b) for a, row in layer.items() for b in row], linewidths=0.5)
    if now.layer > 0:
        left.scatter(*X[list(layer)].T, s=12, color=_INK, zorder=2.5)
    else:
        _zoom(left, X, query, [each for each in trace if each.layer == 0])
    way = [each.node for each in here]
    if before:
        left.plot(*X[[*before, way[0]]].T, color=PINK, linewidth=1.4, linestyle=":", zorder=3)
    _links(left, X, [(each.node, other) for each in here for other in each.seen], colors=BLUE, linewidths=1.0, zorder=3)
    met = sorted({node for each in here for node in each.seen})
    kept = [node for _, node in now.results]
    left.scatter(*X[met].T, s=22, color=BLUE, zorder=4, label="distance computed")
    left.scatter(*X[way].T, s=22, color=ORANGE, zorder=4.5, label="expanded")
    left.scatter(
        *X[kept].T, s=70, facecolor="none", edgecolor=GREEN, linewidth=1.8, zorder=5, label="among the ef best"
    )
    left.scatter(*X[now.node], s=150, facecolor="none", edgecolor=ORANGE, linewidth=2.4, zorder=5, label="at hand")
    _query(left, query)
    left.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4, handletextpad=0.1, columnspacing=0.8)
    _draw_approach(right, trace, step)
    return figure


def _zoom(axes: Any, X: np.ndarray, query: np.ndarray, steps: list[Step]) -> None:
    """Show only the square in which these steps take place."""
    nodes = sorted({node for each in steps for node in (each.node, *each.seen)})
    corners = np.stack([*X[nodes], query])
    middle, half = (corners.min(axis=0) + corners.max(axis=0)) / 2, np.ptp(corners, axis=0).max() / 2 + 15
    axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half))
    axes.set_title(f"{axes.get_title(loc='left')} (zoomed in)", loc="left")


def _draw_approach(axes: Any, trace: list[Step], step: int) -> None:
    away = [each.distance**0.5 for each in trace]
    best = [each.results[0][0] ** 0.5 for each in trace]
    axes.plot(away, color=_LINK, zorder=1)
    axes.plot(best, color=_LINK, linestyle="--", zorder=1)
    axes.plot(away[: step + 1], color=ORANGE, marker="o", markersize=4, label="the node that is expanded")
    axes.plot(best[: step + 1], color=GREEN, linestyle="--", label="the nearest that is known")
    axes.axvline(step, color=YELLOW, linewidth=6, alpha=0.35, zorder=0)
    top = max(away) * 1.08 + 1
    for layer in sorted({each.layer for each in trace}):
        span = [number for number, each in enumerate(trace) if each.layer == layer]
        axes.axvspan(
            span[0] - 0.5, span[-1] + 0.5, color=BLUE, alpha=0.05 if layer % 2 else 0.11, zorder=0, linewidth=0
        )
        axes.text((span[0] + span[-1]) / 2, top, f"{layer}", ha="center", va="bottom", fontsize=9)
    now = trace[step]
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(
        xlabel="step (numbers above: layers)",
        ylabel="distance to the star",
        xlim=(-0.5, len(trace) - 0.5),
        ylim=(0, top),
    )
    axes.set_title(f"keeps {len(now.results)}, {len(now.candidates)} left to expand", pad=18)
    axes.legend(loc="upper right")


def watch(index: HNSWSimple, query: np.ndarray, efs: Sequence[int], static: dict[str, int], alt: str) -> Any:
    """A search to step through: a still picture for the reader, and under it sliders for the step and for ef."""
    import ipywidgets

    traces: dict[int, list[Step]] = {}
    for ef in efs:
        index.search(query, k=1, ef=ef, trace=traces.setdefault(ef, []))
    slider = ipywidgets.IntSlider(0, min=0, max=max(map(len, traces.values())) - 1, description="step")
    slider.layout.width = "70%"
    choice = ipywidgets.SelectionSlider(options=list(efs), value=static["ef"], description="ef")

    def draw(step: int, ef: int) -> Any:
        return draw_step(index, query, traces[ef], step)

    return plots.beside(draw, static, alt, step=slider, ef=choice)


def draw_choice(X: np.ndarray, choices: dict[str, list[int]]) -> Any:
    """Candidates around a new node at the map's middle (a star), and the links that each way to choose makes."""
    figure, panels = plots.figure(1, len(choices), figsize=(3.9 * len(choices), 3.6), squeeze=False)
    centre = np.array([MAP / 2, MAP / 2])
    for axes, (title, chosen) in zip(panels[0], choices.items()):
        _map(axes, X, title)
        axes.set(xlim=(120, 880), ylim=(180, 880))
        for node in chosen:
            axes.plot(*np.stack([centre, X[node]]).T, color=ORANGE, linewidth=1.8, zorder=3)
        axes.scatter(*X.T, s=16, color=_DOT, zorder=3)
        axes.scatter(*X[chosen].T, s=32, color=ORANGE, zorder=4)
        _query(axes, centre)
    return figure


def _plain_ticks(axis: Any) -> None:
    """Label a logarithmic axis at 1, 2, 5, 10 ... with thousands as k."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"))


def draw_tradeoff(curves: dict[str, Curve], distances: dict[str, Sequence[float]]) -> Any:
    """Recall over distances computed, and over queries a second, a line for each setting; points are values of ef."""
    figure, (left, right) = plots.figure(1, 2, figsize=(10.6, 3.9), sharey=True)
    for (label, curve), marker in zip(curves.items(), "osv^D"):
        left.plot(distances[label], curve.recall, marker=marker, label=label)
        right.plot(curve.speed, curve.recall, marker=marker, label=label)
    for axes in (left, right):
        axes.set_xscale("log")
        _plain_ticks(axes.xaxis)
        axes.axhline(0.9, color=_DOT, linewidth=1, linestyle=":")
    left.set(xlabel="distances for a query", ylabel="recall@10", title="What it costs, in distances")
    right.set(xlabel="queries a second, here, one thread", title="... and in time: right is fast")
    left.legend(loc="lower right")
    return figure


def draw_peers(sets: dict[str, dict[str, Curve]], here: dict[str, Curve] | None = None) -> Any:
    """Recall over recorded queries a second, a panel for each set; `here` adds a panel measured on this machine."""
    panels = dict(sets) | ({"here and now": here} if here else {})
    columns = 2 if len(panels) == 4 else len(panels)
    rows = -(-len(panels) // columns)
    figure, grid = plots.figure(rows, columns, figsize=(10.6, 3.6 * rows), squeeze=False)
    styles = {"ours": (BLUE, "o"), "hnswlib": (ORANGE, "s"), "faiss": (GREEN, "v"), "usearch": (PINK, "^")}
    for axes, (title, curves) in zip(grid.flat, panels.items()):
        for library, curve in curves.items():
            colour, marker = styles[library]
            axes.plot(
                curve.recall,
                curve.speed,
                color=colour,
                marker=marker,
                markersize=5,
                label="this course" if library == "ours" else library,
            )
        axes.set_yscale("log")
        _plain_ticks(axes.yaxis)
        axes.set(xlabel="recall@10", title=title)
    for axes in grid[:, 0]:
        axes.set_ylabel("queries a second, one thread")
    grid[0, 0].legend(loc="lower left")
    return figure
