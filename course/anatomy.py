"""Qwen3 taken apart: what the lesson on the forward pass needs besides the code in its own cells.

Letters in shapes: T tokens of one sequence, H query heads, KV key/value heads, D head dimension, V vocabulary size.
Everything is float32, so that a difference between two implementations means a mistake and not rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from course.exercises import CORRECT, Wrong, checker, expect_close, expect_equal, grade
from nanovllm.attention import AttentionMetadata
from nanovllm.config import ModelConfig
from nanovllm.kernels import cpu_fused
from nanovllm.utils.loader import iterate_tensors

# --- the models ----------------------------------------------------------------------------------------------------

_QWEN3 = {
    "vocab_size": 151936,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000,
    "max_position_embeddings": 40960,
    "torch_dtype": "bfloat16",
}
PUBLISHED: dict[str, ModelConfig] = {
    "Qwen3-0.6B": ModelConfig.from_dict(
        _QWEN3
        | {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "tie_word_embeddings": True,
        }
    ),
    "Qwen3-8B": ModelConfig.from_dict(
        _QWEN3
        | {
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "tie_word_embeddings": False,
        }
    ),
}
"""The shapes in the config.json of Qwen/Qwen3-0.6B and Qwen/Qwen3-8B on the Hugging Face hub."""

MODEL_CARDS = {"Qwen3-0.6B": ("0.6B", "0.44B"), "Qwen3-8B": ("8.2B", "6.95B")}
"""Parameters, all and without embeddings, as the model cards on the hub state them."""


def load_weights(folder: str | Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Every tensor of a checkpoint by its published name, in float32."""
    return {name: tensor.to(device, torch.float32) for name, tensor in iterate_tensors(Path(folder))}


def load_transformers(folder: str | Path, device: str | torch.device = "cpu") -> Any:
    """The same checkpoint as transformers' own `Qwen3ForCausalLM`, in float32."""
    from transformers import Qwen3ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return Qwen3ForCausalLM.from_pretrained(str(folder)).to(device, torch.float32).eval()


@torch.no_grad()
def greedy_by_transformers(model: Any, token_ids: Sequence[int], num_tokens: int) -> list[int]:
    """The `num_tokens` likeliest tokens that transformers' own `generate` adds to a text, through every stop token."""
    ids = torch.tensor([list(token_ids)], device=model.device)
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return made[0, ids.shape[1] :].tolist()


# --- the engine, watched -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EngineRun:
    """What the engine's modules took and gave for one sequence, by the module's name, such as `layers.0.mlp`.

    Outputs are (T, ...); `inputs` holds the tensors among a module's arguments; logits are (T, V).
    """

    inputs: dict[str, tuple[Tensor, ...]]
    outputs: dict[str, Tensor]
    logits: Tensor

    def __getitem__(self, name: str) -> Tensor:
        return self.outputs[name]


@torch.inference_mode()
def run_engine(llm: Any, token_ids: Sequence[int]) -> EngineRun:
    """Run the model inside `llm` once over `token_ids` and write down what every module computed.

    The run brings its own KV cache: the engine's may hold prefixes that later requests will use.
    """
    model, block_size = llm.model_runner.model, llm.model_runner.block_size
    first = next(model.parameters())
    num_tokens = len(token_ids)
    num_blocks = -(-num_tokens // block_size)

    def index(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=first.device)

    metadata = AttentionMetadata(
        query_start=index([0, num_tokens]),
        context_lens=index([num_tokens]),
        block_tables=index(range(num_blocks)).unsqueeze(0),
        slot_mapping=index(range(num_tokens)),
        num_decodes=0,
        max_query_len=num_tokens,
        max_context_len=num_tokens,
    )
    inputs: dict[str, tuple[Tensor, ...]] = {}
    outputs: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[Any, tuple[Any, ...], Any], None]:
        def keep(_module: Any, arguments: tuple[Any, ...], output: Any) -> None:
            inputs[name] = tuple(a.clone() for a in arguments if isinstance(a, Tensor))
            # A decoder layer returns two parts of the stream, which the next norm adds up.
            outputs[name] = output[0] + output[1] if isinstance(output, tuple) else output.clone()

        return keep

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.model.named_modules() if name]
    caches = [layer.kv_cache for layer in model.attention_layers()]
    try:
        for layer in model.attention_layers():
            shape = (num_blocks, 2, layer.num_kv_heads, block_size, layer.head_dim)
            layer.kv_cache = torch.zeros(shape, dtype=first.dtype, device=first.device)
        positions = torch.arange(num_tokens, device=first.device)
        ids = torch.tensor(list(token_ids), device=first.device)
        # The compiled loops pass modules by and add in place: what each module computes shows without them.
        with patch.object(cpu_fused, "serves", lambda x: False):
            model(ids, positions, metadata)
        while hooks:
            hooks.pop().remove()
        logits = model.compute_logits(model(ids, positions, metadata))
    finally:
        for hook in hooks:
            hook.remove()
        for layer, cache in zip(model.attention_layers(), caches, strict=True):
            layer.kv_cache = cache
    return EngineRun(inputs, outputs, logits.clone())


def difference(mine: Tensor, theirs: Tensor) -> float:
    """max |mine - theirs| / max |theirs|; infinite where the shapes differ or a value is not finite."""
    if mine.shape != theirs.shape or not (mine.isfinite().all() and theirs.isfinite().all()):
        return float("inf")
    return ((mine - theirs).abs().max() / theirs.abs().max()).item()


def agree(what: str, mine: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> None:
    """Print whether two results (T, ...) are equal up to float32 rounding, with their shape; T is not spelled out."""
    shape = ", ".join(["T", *map(str, mine.shape[1:])])
    verdict = difference(mine, theirs) < tolerance
    print(f"{what:<34} ({shape})".ljust(54) + f"max |difference| / max |value| < {tolerance:.0e}: {verdict}")


# --- the parts -----------------------------------------------------------------------------------------------------


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """x (..., n), gain (n) -> x / sqrt(mean(x^2) + eps) * gain, the mean over the last dimension.

    Zhang and Sennrich 2019, equation 4, with the eps of the published checkpoints.
    """
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * gain


def rotation_angles(positions: Tensor, head_dim: int, theta: float) -> Tensor:
    """Angle of pair i at each position (T) -> (T, D/2): position * theta^(-2i/D) (Su et al. 2021, section 3.2)."""
    pairs = torch.arange(head_dim // 2, device=positions.device)
    return positions[:, None] * theta ** (-2 * pairs / head_dim)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """x (T, heads, D), angles (T, D/2) -> x with each pair (x[i], x[i + D/2]) turned by its angle."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def kv_head(h: int, num_heads: int, num_kv_heads: int) -> int:
    """The KV head that query head `h` reads: neighbouring query heads share one (Ainslie et al. 2023, section 2.2)."""
    return h // (num_heads // num_kv_heads)


# --- counting ------------------------------------------------------------------------------------------------------

PARTS = ("embedding", "projections", "attention", "MLP", "norms", "LM head")
"""projections: q, k, v and output; attention: scores and weighted sums, which have no parameters."""


def parameters_by_part(config: ModelConfig) -> dict[str, int]:
    """How many numbers each part holds, over all layers. A tied LM head is the embedding and holds none of its own."""
    hidden, layers, d = config.hidden_size, config.num_hidden_layers, config.head_dim
    q, kv = config.num_attention_heads * d, config.num_key_value_heads * d
    bias = (q + 2 * kv + hidden) if config.attention_bias else 0
    table = config.vocab_size * hidden
    return {
        "embedding": table,
        "projections": layers * (hidden * (q + 2 * kv) + q * hidden + bias),
        "attention": 0,
        "MLP": layers * 3 * hidden * config.intermediate_size,
        "norms": layers * (2 * hidden + 2 * d) + hidden,
        "LM head": 0 if config.tie_word_embeddings else table,
    }


def count_parameters(config: ModelConfig) -> int:
    """All parameters of a model of this shape."""
    return sum(parameters_by_part(config).values())


def flops_by_part(config: ModelConfig, context: int) -> dict[str, int]:
    """Floating-point operations of the matrix products for one token that attends to `context` tokens, itself included.

    A product with an (m, n) matrix counts 2 m n: m n multiplications and as many additions. Norms, RoPE, softmax and
    SiLU are left out: they take a few operations for each number, where the products take thousands.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    q = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    return {
        "embedding": 0,
        "projections": 2 * layers * (hidden * (q + 2 * kv) + q * hidden),
        "attention": 4 * layers * q * context,
        "MLP": 2 * layers * 3 * hidden * config.intermediate_size,
        "norms": 0,
        "LM head": 2 * config.vocab_size * hidden,
    }


def print_counts(counts: dict[str, dict[str, int]]) -> None:
    """Print counts by part, one column for each model, and their sums."""
    print(" " * 12 + "".join(f"{name:>16}" for name in counts))
    for part in PARTS:
        print(f"{part:<12}" + "".join(f"{count[part]:>16,}" for count in counts.values()))
    print(f"{'all':<12}" + "".join(f"{sum(count.values()):>16,}" for count in counts.values()))


def balance_context(config: ModelConfig) -> float:
    """The context at which attention takes as many operations as all the weights together."""
    flops = flops_by_part(config, 1)
    return (sum(flops.values()) - flops["attention"]) / flops["attention"]


def transformers_on_meta(config: ModelConfig) -> Any:
    """transformers' model of this shape on the meta device: every layer and shape, and no memory for weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "head_dim", "tie_word_embeddings", "attention_bias")
    with torch.device("meta"):
        return Qwen3ForCausalLM(Qwen3Config(**{name: getattr(config, name) for name in names})).eval()


def transformers_parameters(config: ModelConfig) -> int:
    """Parameters that transformers creates for a model of this shape, a shared one counted once."""
    return sum(parameter.numel() for parameter in transformers_on_meta(config).parameters())


@torch.no_grad()
def transformers_flops(config: ModelConfig, num_tokens: int) -> int:
    """Operations that torch's FlopCounterMode sees when transformers' model reads `num_tokens` tokens at once.

    It counts the full square of scores, also those that the causal mask then throws away. RoPE's angles, position times
    frequency, are left out: some releases of transformers compute them as a matrix product, which it counts, others not.
    """
    from torch.utils.flop_counter import FlopCounterMode

    model = transformers_on_meta(config)
    ids = torch.zeros(1, num_tokens, dtype=torch.int64, device="meta")
    mask = torch.zeros(1, 1, num_tokens, num_tokens, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(ids, attention_mask=mask, use_cache=False)
    angles = counter.get_flop_counts().get(f"{type(model).__name__}.model.rotary_emb", {})
    return counter.get_total_flops() - sum(angles.values())


# --- exercises of notebook 02 --------------------------------------------------------------------------------------


def yours_or_ours(exercise: str, yours: Callable[..., Any]) -> Callable[..., Any]:
    """The student's function once its check says correct, and until then the course's own."""
    correct = yours is not _OURS[exercise] and grade(exercise, yours).verdict == CORRECT
    print(
        f"{yours.__name__}: from here on {'yours' if correct else 'the one in course/anatomy.py, until yours is right'}"
    )
    return yours if correct else _OURS[exercise]


_OURS: dict[str, Callable[..., Any]] = {"rms-norm": rms_norm, "rotate": rotate, "kv-head": kv_head}


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@checker("rms-norm")
def _(rms_norm: Callable[[Tensor, Tensor, float], Tensor]) -> str:
    ones = torch.ones(4)
    row = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    hint = "divide each row by the root of the mean of its squares; nothing is subtracted"
    expect_close("rms_norm of [1, 2, 3, 4]", rms_norm(row, ones, 0.0), row / 7.5**0.5, tol=1e-5, hint=hint)
    two = torch.stack([row[0], 10 * row[0]])
    want = torch.stack([row[0], row[0]]) / 7.5**0.5
    hint = "each row has its own mean: take it over the last dimension and keep that dimension"
    expect_close("rms_norm of two rows, the second ten times the first,", rms_norm(two, ones, 0.0), want, 1e-5, hint)
    gain = torch.tensor([1.0, 0.5, 2.0, -1.0])
    expect_close(
        "with the gain [1, 0.5, 2, -1] the result",
        rms_norm(row, gain, 0.0),
        row / 7.5**0.5 * gain,
        tol=1e-5,
        hint="multiply by the gain after the division",
    )
    small = torch.full((1, 4), 1e-3)
    hint = "eps stands under the root, beside the mean of the squares"
    expect_close(
        "rms_norm of [0.001, ...] with eps = 1e-6", rms_norm(small, ones, 1e-6), ones[None] / 2**0.5, 1e-5, hint
    )
    heads = _random(3, 2, 4)
    expect_close("on (T, heads, D) the result", rms_norm(heads, gain, 1e-6), _OURS["rms-norm"](heads, gain, 1e-6), 1e-5)
    return "Your RMSNorm drops the length of a vector, keeps its direction, and lets the gain reweigh its entries"


@checker("rotate")
def _(rotate: Callable[[Tensor, Tensor], Tensor]) -> str:
    # One head of two pairs: the first pair is entries 0 and 2, the second entries 1 and 3.
    quarter = torch.tensor([[torch.pi / 2, 0.0]])
    x = torch.tensor([[[1.0, 2.0, 0.0, 0.0]]])
    got = rotate(x, quarter)
    want = torch.tensor([[[0.0, 2.0, 1.0, 0.0]]])
    if isinstance(got, Tensor) and got.shape == want.shape:
        if torch.allclose(got, torch.tensor([[[0.0, 2.0, -1.0, 0.0]]]), atol=1e-5):
            raise Wrong("The pair turns backwards: (1, 0) by a quarter turn must become (0, 1), and became (0, -1).")
        if torch.allclose(got, torch.tensor([[[-2.0, 1.0, 0.0, 0.0]]]), atol=1e-5):
            raise Wrong(
                "You turn neighbours: entries 0 and 1 as a pair. These weights were trained with entry i and "
                "entry i + D/2 as a pair.",
                picture=_pairs,
            )
    hint = "pair 0 is (x[0], x[2]) = (1, 0) and turns to (0, 1); pair 1 has angle 0 and stays"
    expect_close("[1, 2, 0, 0] with pair 0 turned by a quarter", got, want, tol=1e-5, hint=hint)
    x, angles = _random(5, 3, 8), 3 * _random(5, 4, seed=1)
    got = rotate(x, angles)
    hint = "token t has its own angles, and all heads of a token share them"
    expect_close("for random x (5, 3, 8) the result", got, _OURS["rotate"](x, angles), tol=1e-5, hint=hint)
    return "Each pair turns by its own angle, and no length changes"


def _pairs(axes: Any) -> None:
    for row, (name, partner) in enumerate((("yours", (1, 0, 3, 2)), ("these weights", (4, 5, 6, 7, 0, 1, 2, 3)))):
        entries = len(partner)
        for i, j in enumerate(partner):
            if j > i:
                axes.annotate(
                    "",
                    (j, row),
                    (i, row),
                    arrowprops={"arrowstyle": "<->", "connectionstyle": "arc3,rad=-0.35", "color": f"C{i % 4}"},
                )
        axes.plot(range(entries), [row] * entries, "o", color="#4D4D4D")
        axes.text(-0.4, row + 0.3, name)
    axes.set(xlim=(-0.6, 7.5), ylim=(-0.7, 1.8), yticks=[], xlabel="entry of a head", title="Which entries form a pair")


@checker("kv-head")
def _(kv_head: Callable[[int, int, int], int]) -> str:
    for heads, kv_heads in ((4, 2), (8, 8), (8, 1), (16, 8), (32, 8), (6, 3)):
        got = [kv_head(h, heads, kv_heads) for h in range(heads)]
        want = [h // (heads // kv_heads) for h in range(heads)]
        group = heads // kv_heads
        hint = f"{group} neighbouring query heads share one" if group > 1 else "each query head has its own"
        expect_equal(f"With {heads} query heads and {kv_heads} KV heads the list of KV heads", got, want, hint)
    return "Neighbouring query heads share a KV head"


@checker("count-parameters")
def _(count: Callable[[ModelConfig], int]) -> str:
    for name, config in PUBLISHED.items():
        got, want, parts = count(config), count_parameters(config), parameters_by_part(config)
        if isinstance(got, int) and got != want:
            table, d = config.vocab_size * config.hidden_size, config.head_dim
            square = 2 * config.num_hidden_layers * config.hidden_size
            square *= config.hidden_size - config.num_attention_heads * d
            known = {
                table if config.tie_word_embeddings else 0: "the tied LM head is the embedding: count the table once",
                -parts["LM head"]: "this model's LM head is a table of its own",
                -2 * d * config.num_hidden_layers: "each layer has two more norms, of q and of k, of head_dim each",
                square: "q and o connect hidden_size with heads * head_dim, which are two different numbers",
            }
            raise Wrong(
                f"{name} has {want:,} parameters, you count {got:,}, which is {abs(got - want):,} too "
                f"{'many' if got > want else 'few'}: {known.get(got - want, 'compare with the names in the table above')}."
            )
        expect_equal(f"The number of parameters of {name}", got, want)
    return "Both counts equal what transformers allocates, to the last parameter"
