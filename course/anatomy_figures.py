"""The pictures of the lesson on Qwen3's forward pass: each takes what was computed and draws it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from course import plots
from course.anatomy import PARTS, flops_by_part, parameters_by_part, rotation_angles
from nanovllm.config import ModelConfig

PART_COLOURS = dict(zip(PARTS, plots.COLOURS, strict=False))
"""One colour for each part, the same in every picture."""


def label(tokenizer: Any, token_id: int) -> str:
    """A token as a short label: spaces and line ends visible, characters that the font may lack as a question mark."""
    text = tokenizer.decode([token_id]).replace(" ", "·").replace("\n", "⏎")
    text = "".join(c if c in "·⏎" or (c.isprintable() and ord(c) < 0x250) else "?" for c in text)
    return text.replace("$", r"\$")[:13]


# --- the map -------------------------------------------------------------------------------------------------------


def draw_map(config: ModelConfig) -> Any:
    """The whole model as a diagram: a stream from the token ids up to the logits, and what reads it and adds to it."""
    figure, axes = plots.figure(figsize=(9.0, 5.6))
    hidden, d = config.hidden_size, config.head_dim
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    stream = 1.9

    def box(x: float, y: float, width: float, text: str, part: str) -> None:
        style = {"boxstyle": "round,pad=0.02,rounding_size=0.1", "linewidth": 1.2, "edgecolor": PART_COLOURS[part]}
        axes.add_patch(_patch((x, y - 0.27), width, 0.54, facecolor="white", zorder=4, **style))
        axes.text(x + width / 2, y, text, ha="center", va="center", fontsize=9, zorder=5)

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#4D4D4D", "linewidth": 1.2})

    def note(x: float, y: float, text: str) -> None:
        axes.text(x, y, text, va="center", fontsize=8.5, color="#5A5F66")

    axes.add_patch(_patch((0.1, 1.3), 9.55, 3.5, facecolor="#EFF1F2", edgecolor="none", boxstyle="round,pad=0.05"))
    note(0.2, 4.6, f"layer, {config.num_hidden_layers} times")
    arrow((stream, -0.1), (stream, 6.6))
    note(stream + 0.12, -0.1, "token ids (T)")
    box(stream - 0.9, 0.5, 1.8, "embedding", "embedding")
    note(stream + 1.05, 0.5, f"a row of {hidden} numbers for each token: the residual stream")
    for base, chain in (
        (1.75, (("RMSNorm", "norms"), ("q, k, v", "projections"), ("QK-norm, RoPE", "norms"))),
        (3.55, (("RMSNorm", "norms"), ("gate, up", "MLP"), ("silu(gate) · up", "MLP"))),
    ):
        x = stream + 0.75
        arrow((stream, base), (x, base))
        for text, part in chain:
            width = 0.55 + 0.085 * len(text)
            box(x, base, width, text, part)
            arrow((x + width, base), (x + width + 0.35, base))
            x += width + 0.35
        attention = base < 2
        last = ("attention", "attention") if attention else ("down", "MLP")
        box(x, base, 1.25, *last)
        back = base + 0.75
        if attention:
            arrow((x + 0.62, base + 0.27), (x + 0.62, back - 0.27))
            box(x, back, 1.25, "output", "projections")
            arrow((x, back), (stream + 0.17, back))
            note(stream + 0.75, back - 0.2, f"{heads} query heads, {kv_heads} KV heads, of {d}")
        else:
            axes.plot([x + 0.62, x + 0.62], [base + 0.27, back], color="#4D4D4D", linewidth=1.2)
            arrow((x + 0.62, back), (stream + 0.17, back))
            note(stream + 0.75, back - 0.2, f"{hidden} to {config.intermediate_size} and back")
        axes.text(
            stream,
            back,
            "+",
            zorder=5,
            ha="center",
            va="center",
            fontsize=12,
            bbox={"boxstyle": "circle", "fc": "white"},
        )
    box(stream - 0.9, 5.2, 1.8, "RMSNorm", "norms")
    box(stream - 0.9, 5.9, 1.8, "LM head", "LM head")
    tied = "the embedding's own table, read the other way" if config.tie_word_embeddings else "a table of its own"
    note(stream + 1.05, 5.9, tied)
    note(stream + 0.12, 6.6, f"logits (T, {config.vocab_size})")
    axes.set(xlim=(0, 9.8), ylim=(-0.3, 6.8))
    axes.axis("off")
    return figure


def _patch(corner: tuple[float, float], width: float, height: float, **style: Any) -> Any:
    from matplotlib.patches import FancyBboxPatch

    return FancyBboxPatch(corner, width, height, **style)


# --- RoPE ----------------------------------------------------------------------------------------------------------


def draw_rotation(head_dim: int, theta: float, positions: int = 12) -> Any:
    """Three pairs of a head as arrows at the first positions, and the angle's cosine for a hundred positions."""
    figure, axes = plots.figure(1, 4, figsize=(11.0, 3.2), width_ratios=(1, 1, 1, 1.7))
    pairs = (0, head_dim // 8, head_dim // 4)
    angles = rotation_angles(torch.arange(positions), head_dim, theta)
    finely = torch.linspace(0, 100, 1001)
    waves = rotation_angles(finely, head_dim, theta).cos()
    for axis, pair, colour in zip(axes, pairs, plots.COLOURS, strict=False):
        for position in range(positions):
            angle = angles[position, pair].item()
            tip = (math.cos(angle), math.sin(angle))
            # Paler arrows are earlier positions.
            strength = 0.2 + 0.8 * position / (positions - 1)
            axis.annotate("", tip, (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "alpha": strength})
            # A number where there is room for it.
            if position == 0 or (position in (1, positions - 1) and abs(angle) > 0.3):
                axis.text(1.18 * tip[0], 1.18 * tip[1], str(position), ha="center", va="center", fontsize=9)
        axis.add_patch(_circle())
        axis.set(xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), aspect="equal")
        axis.axis("off")
        turn = 2 * math.pi / angles[1, pair].item()
        axis.set_title(f"pair {pair}: a turn every\n{turn:,.1f} positions", fontsize=10)
        axes[3].plot(finely.numpy(), waves[:, pair].numpy(), color=colour, label=f"pair {pair}")
    axes[3].set(
        xlabel="position", ylabel="cosine of the angle", title="Fast and slow hands of a clock", ylim=(-1.1, 1.5)
    )
    axes[3].legend(ncols=3, loc="upper center")
    return figure


def _circle() -> Any:
    from matplotlib.patches import Circle

    return Circle((0, 0), 1.0, fill=False, color="#C9CDD2", linewidth=1.0)


# --- attention -----------------------------------------------------------------------------------------------------


def draw_attention(weights: Tensor, tokens: Sequence[str], title: str) -> Any:
    """One head's weights (T, T): a row for each token that asks, a column for each token that it looks at."""
    figure, axes = plots.figure(figsize=(6.4, 5.4))
    image = axes.imshow(weights.cpu().numpy(), vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, ax=axes, label="attention weight", shrink=0.8)
    ticks = range(len(tokens))
    axes.set_xticks(ticks, tokens, rotation=90)
    axes.set_yticks(ticks, tokens)
    axes.set(xlabel="token that is looked at", ylabel="token that asks", title=title)
    axes.grid(False)
    return figure


def draw_head_habits(weights: Tensor) -> Any:
    """Weights (layers, H, T, T): how much each head looks at the token before, and at the first token, on average."""
    figure, axes = plots.figure(1, 2, figsize=(8.0, 2.6))
    for axis, (title, share) in zip(axes, head_habits(weights).items(), strict=True):
        image = axis.imshow(share.numpy(), vmin=0, vmax=1, cmap="Blues", aspect="auto", origin="lower")
        axis.set(xlabel="query head", ylabel="layer", title=title)
        axis.set(xticks=range(share.shape[1]), yticks=range(share.shape[0]))
        axis.grid(False)
    figure.colorbar(image, ax=axes, label="mean weight")
    return figure


def head_habits(weights: Tensor) -> dict[str, Tensor]:
    """Weights (layers, H, T, T) -> mean weight (layers, H) on the token before and on the first token.

    Queries 0 and 1 are left out: for them the two are the same token, or there is none.
    """
    before = weights.diagonal(offset=-1, dim1=-2, dim2=-1)[..., 1:]
    return {"on the token before": before.mean(-1).cpu(), "on the first token": weights[..., 2:, 0].mean(-1).cpu()}


# --- residual stream and logit lens --------------------------------------------------------------------------------


def draw_stream(stream: Tensor, from_attention: Tensor, from_mlp: Tensor) -> Any:
    """Norms by layer: the stream (layers + 1, T, hidden), and what attention and MLP add (layers, T, hidden)."""
    figure, axes = plots.figure(figsize=(6.8, 3.6))
    norms = stream.norm(dim=-1).cpu()
    depth = range(len(norms))
    low, high = norms.quantile(0.1, dim=1), norms.quantile(0.9, dim=1)
    axes.fill_between(depth, low.tolist(), high.tolist(), color=plots.COLOURS[6], alpha=0.15, linewidth=0)
    axes.plot(depth, norms.median(1).values.tolist(), color=plots.COLOURS[6], marker="o", label="residual stream")
    layers = [layer + 0.5 for layer in range(len(from_mlp))]
    for added, part, marker in ((from_attention, "attention", "s"), (from_mlp, "MLP", "D")):
        heights = added.norm(dim=-1).median(1).values.tolist()
        axes.plot(layers, heights, marker, color=PART_COLOURS[part], label=f"added by {part}")
    axes.set_yscale("log")
    axes.set(xlabel="layers done", ylabel="Euclidean norm", title="Median over the tokens (band: the middle 80 %)")
    axes.set(xticks=depth)
    axes.legend(loc="upper left")
    return figure


def draw_lens(probabilities: Tensor, token_ids: Sequence[int], tokenizer: Any, last: int = 9) -> Any:
    """Logit lens (layers + 1, T, V): the likeliest next token after each layer, for the `last` positions."""
    shown = probabilities[:, -last:].max(-1)
    depth = probabilities.shape[0]
    figure, axes = plots.figure(figsize=(0.6 + 1.05 * last, 0.9 + 0.42 * depth))
    image = axes.imshow(shown.values.cpu().numpy(), vmin=0, vmax=1, cmap="Blues", aspect="auto", origin="lower")
    for row in range(depth):
        for column in range(shown.values.shape[1]):
            colour = "white" if shown.values[row, column] > 0.6 else "#2B2B2B"
            text = label(tokenizer, shown.indices[row, column].item())
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(last), [label(tokenizer, token) for token in token_ids[-last:]])
    axes.set_yticks(range(depth))
    axes.set(xlabel="token read", ylabel="layers done", title="What the model would say next, layer by layer")
    axes.grid(False)
    figure.colorbar(image, ax=axes, label="probability")
    return figure


def draw_lens_at(
    probabilities: Tensor, token_ids: Sequence[int], tokenizer: Any, layer: int, position: int, top: int = 8
) -> Any:
    """The likeliest next tokens after `layer` layers at one position, with the text so far."""
    found = probabilities[layer, position].topk(top)
    figure, axes = plots.figure(figsize=(6.8, 3.0))
    rows = range(top)
    axes.barh(rows, found.values.tolist(), color=plots.COLOURS[0])
    axes.set_yticks(rows, [label(tokenizer, token) for token in found.indices.tolist()])
    axes.invert_yaxis()
    text = "".join(label(tokenizer, token) for token in token_ids[max(0, position - 7) : position + 1])
    axes.set(xlim=(0, 1), xlabel="probability", title=f"{layer} layers done, after “…{text.replace('·', ' ')}”")
    axes.grid(axis="y", visible=False)
    return figure


# --- bugs and counts -----------------------------------------------------------------------------------------------


def draw_errors(errors: Mapping[str, Tensor]) -> Any:
    """For each bug, the largest error of the logits at each position (T), relative to the largest right logit."""
    figure, axes = plots.figure(figsize=(7.2, 3.6))
    for (name, error), marker in zip(errors.items(), "osDv", strict=True):
        axes.plot(error.clamp(min=1e-7).tolist(), marker=marker, markersize=4, linewidth=1.2, label=name)
    axes.set_yscale("log")
    axes.axhspan(1e-7, 1e-4, color="#DFE1E0", alpha=0.6, linewidth=0)
    axes.text(0.99, 0.13, "rounding", transform=axes.transAxes, ha="right", color="#5A5F66", fontsize=9)
    axes.set(xlabel="position", ylabel="relative error of the logits", ylim=(1e-7, 30))
    axes.set_title("Where each bug shows")
    axes.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.55, 0.2))
    return figure


def draw_shares(models: Mapping[str, ModelConfig], contexts: Sequence[int]) -> Any:
    """Stacked bars: each part's share of the parameters, and of the operations for one token at each context."""
    figure, axes = plots.figure(1, 1 + len(contexts), figsize=(11.0, 3.6), sharey=True)
    columns = [("parameters", {name: parameters_by_part(config) for name, config in models.items()})]
    columns += [
        (f"operations, context {context:,}", {name: flops_by_part(config, context) for name, config in models.items()})
        for context in contexts
    ]
    for axis, (title, counts) in zip(axes, columns, strict=True):
        left = [0.0] * len(counts)
        for part in PARTS:
            shares = [count[part] / sum(count.values()) for count in counts.values()]
            axis.barh(range(len(counts)), shares, left=left, color=PART_COLOURS[part], label=part, height=0.6)
            for row, (start, share) in enumerate(zip(left, shares, strict=True)):
                if share > 0.09:
                    axis.text(
                        start + share / 2, row, f"{share:.0%}", ha="center", va="center", color="white", fontsize=9
                    )
            left = [start + share for start, share in zip(left, shares, strict=True)]
        axis.set(xlim=(0, 1), xticks=[0, 0.5, 1], title=title)
        axis.set_xticklabels(["0", "50 %", "100 %"])
        axis.grid(False)
    axes[0].set_yticks(range(len(models)), list(models))
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(PARTS))
    return figure
