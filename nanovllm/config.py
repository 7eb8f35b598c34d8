"""What the engine is told (EngineConfig) and what the model's folder says (ModelConfig)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanovllm.utils.validation import StrictArguments, check_bool, check_choice, check_float, check_int

EMBEDDED_MODEL = Path(__file__).parent / "embedded_model"
"""Folder of the tiny Qwen3 that ships with the package."""

DTYPES = ("auto", "float32", "float16", "bfloat16")
DEVICES = ("auto", "cpu", "cuda")
MODEL_TYPES = ("qwen3", "qwen2", "llama")
ATTENTION_BACKENDS = ("auto", "reference", "numba", "triton", "flash_attn")


@dataclass(frozen=True)
class EngineConfig(StrictArguments):
    """Settings of one engine. nano-vllm's names where it has them.

    Args:
        model: folder of a Hugging Face checkpoint, or a hub name such as "Qwen/Qwen3-0.6B".
        max_num_batched_tokens: most tokens that one step computes; longer prompts are split into chunks.
        max_num_seqs: most sequences that run at once.
        max_model_len: most tokens of one sequence, prompt and output together. It is lowered to what the model's
            position range and the KV cache can hold.
        gpu_memory_utilization: share of the GPU's memory that weights, activations and KV cache may take together.
        tensor_parallel_size: number of processes that share each layer's weights: one GPU each, or all on the CPU. They
            are started here, or are torchrun's where the program runs under torchrun.
        enforce_eager: do not capture CUDA graphs.
        kvcache_block_size: token slots in one KV-cache block, 16 to 256 in powers of two (flash_attn: 256).
            None takes what the attention backend prefers.
        num_kvcache_blocks: None measures the free memory on a GPU and takes `cpu_kvcache_gib` on a CPU.
        cpu_kvcache_gib: size of the KV cache on a CPU, in GiB, in each process.
        device: "cpu", "cuda", or "auto" (cuda where there is one).
        dtype: "float32", "float16", "bfloat16", or "auto" (the checkpoint's on a GPU, float32 on a CPU).
        attention_backend: "reference", "numba" (CPU), "triton", "flash_attn" (GPU), or "auto".
        enable_prefix_caching: let requests share the KV blocks of equal prefixes.
        seed: seed of the requests that bring none.
        trace: record what each step decided.
        async_scheduling: launch each step before the tokens of the one before it are read. None does so on a GPU, where it
            hides Python's time. The tokens are the same; under trace steps take turns.
    """

    model: str = str(EMBEDDED_MODEL)
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256
    max_model_len: int = 4096
    gpu_memory_utilization: float = 0.9
    tensor_parallel_size: int = 1
    enforce_eager: bool = False
    kvcache_block_size: int | None = None
    num_kvcache_blocks: int | None = None
    cpu_kvcache_gib: float = 0.25
    device: str = "auto"
    dtype: str = "auto"
    attention_backend: str = "auto"
    enable_prefix_caching: bool = True
    seed: int = 0
    trace: bool = False
    async_scheduling: bool | None = None

    def __post_init__(self):
        if not isinstance(self.model, (str, Path)):
            raise TypeError(f"model must be a folder or a hub name, got {self.model!r}.")
        if not str(self.model).strip():
            raise ValueError("model must be a folder or a hub name, got an empty string.")
        check_int("max_num_batched_tokens", self.max_num_batched_tokens, 1)
        check_int("max_num_seqs", self.max_num_seqs, 1)
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}): each running sequence decodes one token in a step."
            )
        check_int("max_model_len", self.max_model_len, 1)
        check_float("gpu_memory_utilization", self.gpu_memory_utilization, 0.0, 1.0, open_low=True)
        check_int("tensor_parallel_size", self.tensor_parallel_size, 1)
        for name in ("enforce_eager", "enable_prefix_caching", "trace"):
            check_bool(name, getattr(self, name))
        if self.async_scheduling is not None:
            check_bool("async_scheduling", self.async_scheduling)
        if self.kvcache_block_size is not None:
            check_int("kvcache_block_size", self.kvcache_block_size, 1)
            check_choice("kvcache_block_size", self.kvcache_block_size, (16, 32, 64, 128, 256))
        if self.num_kvcache_blocks is not None:
            check_int("num_kvcache_blocks", self.num_kvcache_blocks, 1)
        check_float("cpu_kvcache_gib", self.cpu_kvcache_gib, 0.0, open_low=True)
        check_choice("device", self.device, DEVICES)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("attention_backend", self.attention_backend, ATTENTION_BACKENDS)
        check_int("seed", self.seed, 0, 2**63 - 1)


@dataclass(frozen=True)
class Llama3Scaling:
    """How Llama 3.1 stretches RoPE: slow frequencies are divided by `factor`, fast ones stay, those between are blended.

    A frequency is slow if it turns fewer than `low_freq_factor` times within `original_max_position_embeddings`
    positions, fast if it turns more than `high_freq_factor` times.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class YarnScaling:
    """How YaRN (Peng et al. 2023, section 3) stretches RoPE: as llama3, but the blend is linear in the dimension.

    A frequency is fast if it turns more than `beta_fast` times within `original_max_position_embeddings` positions, slow
    if fewer than `beta_slow` times. `truncate` rounds the two borders outwards to whole dimensions. Cosines and sines are
    multiplied by `attention_factor`, which sharpens the softmax.
    """

    factor: float
    beta_fast: float
    beta_slow: float
    attention_factor: float
    truncate: bool
    original_max_position_embeddings: int


@dataclass(frozen=True)
class ModelConfig:
    """A dense Qwen3, Qwen2 or Llama as its config.json describes it.

    Attributes (those that are not config.json's own):
        attention_bias: the q, k and v projections have biases.
        o_proj_bias: the output projection of attention has one (Qwen2's never has).
        max_position_embeddings: with YaRN at least factor * original_max_position_embeddings.
        rope_scaling: None for plain RoPE.
        eos_token_ids: generation_config.json's, else config.json's.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    attention_bias: bool
    dtype: str
    eos_token_ids: frozenset[int] = field(default_factory=frozenset)
    model_type: str = "qwen3"
    o_proj_bias: bool = False
    mlp_bias: bool = False
    rope_scaling: Llama3Scaling | YarnScaling | None = None

    @classmethod
    def from_folder(cls, folder: str | Path) -> ModelConfig:
        """Reads config.json (both its 2025 and its present form) and, where there is one, generation_config.json.

        Raises:
            FileNotFoundError: no config.json in `folder`.
            ValueError: a file is not JSON, a key is missing or misshapen, or the model is of a kind not served here.
        """
        folder = Path(folder)
        path = folder / "config.json"
        raw = _read_json(path)
        raw.setdefault("model_type", None)  # a file must say it
        generation_path = folder / "generation_config.json"
        generation = _read_json(generation_path) if generation_path.exists() else {}
        return cls.from_dict(raw, generation, source=str(path))

    @classmethod
    def from_dict(
        cls, raw: dict[str, Any], generation: dict[str, Any] | None = None, source: str = "config"
    ) -> ModelConfig:
        """As `from_folder`, from the files' parsed contents; without a model_type they are a Qwen3's."""
        kind = raw.get("model_type", "qwen3")
        if kind not in MODEL_TYPES:
            allowed = ", ".join(map(repr, MODEL_TYPES))
            raise ValueError(f"{source}: model_type is {kind!r}; this engine serves {allowed} (dense models).")
        _refuse_what_is_not_served(raw, source)
        heads = _positive(raw, "num_attention_heads", source)
        hidden = _positive(raw, "hidden_size", source)
        if kind == "llama" and raw.get("num_key_value_heads") is None:  # as the first two generations are published
            kv_heads = heads
        else:
            kv_heads = _positive(raw, "num_key_value_heads", source)
        if heads % kv_heads:
            raise ValueError(
                f"{source}: num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv_heads})."
            )
        if kind != "qwen3" and raw.get("head_dim") is None:
            if hidden % heads:
                raise ValueError(
                    f"{source}: without head_dim, hidden_size ({hidden}) must be a multiple of "
                    f"num_attention_heads ({heads})."
                )
            head_dim = hidden // heads
        else:
            head_dim = _positive(raw, "head_dim", source)
        if head_dim % 2:
            raise ValueError(f"{source}: head_dim must be even (RoPE rotates pairs), got {head_dim}.")
        # Qwen2's biases are a part of the architecture, not of its config.
        attention_bias = kind != "qwen2" and _switch(raw, "attention_bias", source)
        theta, scaling, max_positions = _rope(raw, 10_000 if kind == "llama" else None, source)
        return cls(
            vocab_size=_positive(raw, "vocab_size", source),
            hidden_size=hidden,
            intermediate_size=_positive(raw, "intermediate_size", source),
            num_hidden_layers=_positive(raw, "num_hidden_layers", source),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=_positive_number("rms_norm_eps", raw.get("rms_norm_eps"), source),
            rope_theta=theta,
            max_position_embeddings=max_positions,
            tie_word_embeddings=_switch(raw, "tie_word_embeddings", source),
            attention_bias=kind == "qwen2" or attention_bias,
            dtype=_dtype(raw, source),
            eos_token_ids=_eos_token_ids(raw, generation or {}, source),
            model_type=kind,
            o_proj_bias=attention_bias,
            mlp_bias=kind == "llama" and _switch(raw, "mlp_bias", source),
            rope_scaling=scaling,
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: is {path.parent} the folder of a checkpoint?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return content


def _positive(raw: dict[str, Any], key: str, source: str) -> int:
    value = raw.get(key)
    if value is None:
        raise ValueError(f"{source}: the key {key!r} is missing.")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{source}: {key} must be a positive int, got {value!r}.")
    return value


def _positive_number(key: str, value: object, source: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"{source}: {key} must be a positive number, got {value!r}.")
    return float(value)


def _switch(raw: dict[str, Any], key: str, source: str) -> bool:
    value = raw.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{source}: {key} must be true or false, got {value!r}.")
    return value


ROPE_KEYS = {
    "default": (),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        *("factor", "original_max_position_embeddings", "beta_fast", "beta_slow"),
        *("attention_factor", "mscale", "mscale_all_dim", "truncate"),
    ),
}
"""The RoPE types that are served, each with its parameters."""


def _rope(
    raw: dict[str, Any], default_theta: float | None, source: str
) -> tuple[float, Llama3Scaling | YarnScaling | None, int]:
    """rope_theta, the scaling, and how many positions there are."""
    max_positions = _positive(raw, "max_position_embeddings", source)
    parameters = _rope_parameters(raw, source)
    theta = parameters.pop("rope_theta", None)
    theta = _positive_number("rope_theta", default_theta if theta is None else theta, source)
    kind = parameters.pop("rope_type", "default")
    if kind not in tuple(ROPE_KEYS):
        allowed = ", ".join(map(repr, ROPE_KEYS))
        raise ValueError(f"{source}: RoPE of type {kind!r} is not served; allowed: {allowed}.")
    for key, value in parameters.items():
        if key == "partial_rotary_factor" and value == 1:
            continue
        if key not in ROPE_KEYS[kind]:
            allowed = ", ".join(map(repr, ROPE_KEYS[kind])) or "'rope_theta' alone"
            raise ValueError(f"{source}: RoPE of type {kind!r} has {key}={value!r}; allowed: {allowed}.")
    if kind == "default":
        return theta, None, max_positions

    def number(key: str, default: float | None = None) -> float:
        value = parameters.get(key)
        return _positive_number(f"{key} of RoPE type {kind!r}", default if value is None else value, source)

    factor = number("factor")
    if factor < 1:
        raise ValueError(f"{source}: factor of RoPE type {kind!r} must be at least 1, got {factor}.")
    original = int(number("original_max_position_embeddings", max_positions))
    if kind == "llama3":
        low, high = number("low_freq_factor"), number("high_freq_factor")
        if low >= high:
            raise ValueError(f"{source}: low_freq_factor ({low}) must be less than high_freq_factor ({high}).")
        return theta, Llama3Scaling(factor, low, high, original), max_positions

    if theta <= 1:
        raise ValueError(f"{source}: rope_theta must be greater than 1 with RoPE of type 'yarn', got {theta}.")
    beta_fast, beta_slow = number("beta_fast", 32), number("beta_slow", 1)
    if beta_slow > beta_fast:
        raise ValueError(f"{source}: beta_slow ({beta_slow}) must be at most beta_fast ({beta_fast}).")
    attention_factor = _mscale(factor, 1.0)  # the paper's equation 22, both for queries and for keys
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        attention_factor = _mscale(factor, number("mscale")) / _mscale(factor, number("mscale_all_dim"))
    attention_factor = number("attention_factor", attention_factor)
    truncate = _switch({"truncate": True} | parameters, "truncate", source)
    scaling = YarnScaling(factor, beta_fast, beta_slow, attention_factor, truncate, original)
    return theta, scaling, max(max_positions, int(factor * original))


def _rope_parameters(raw: dict[str, Any], source: str) -> dict[str, Any]:
    """All that config.json says about RoPE, in the spelling of transformers 5, without what is null.

    transformers 5 writes `rope_parameters`; before, there were `rope_theta`, and `rope_scaling` for other types. People
    add the latter to a file of either kind when they want long contexts.
    """
    merged: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        given = raw.get(key) or {}
        if not isinstance(given, dict):
            raise ValueError(f"{source}: {key} must be an object, got {given!r}.")
        given = {name: value for name, value in given.items() if value is not None}
        older = given.pop("type", "default")
        if given.setdefault("rope_type", older) == "default":
            del given["rope_type"]  # so that it does not contradict the other one
        for name in merged.keys() & given.keys():
            if merged[name] != given[name]:
                raise ValueError(
                    f"{source}: {name} is {merged[name]!r} in rope_scaling and {given[name]!r} in rope_parameters."
                )
        merged |= given
    for name in ("rope_theta", "partial_rotary_factor"):  # beside them, in older files
        if raw.get(name) is not None:
            merged.setdefault(name, raw[name])
    return merged


def _mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0


def _dtype(raw: dict[str, Any], source: str) -> str:
    name = raw.get("dtype") or raw.get("torch_dtype") or "float32"
    if name not in DTYPES[1:]:
        raise ValueError(f"{source}: dtype must be one of {', '.join(DTYPES[1:])}, got {name!r}.")
    return name


def _eos_token_ids(raw: dict[str, Any], generation: dict[str, Any], source: str) -> frozenset[int]:
    eos = generation.get("eos_token_id", raw.get("eos_token_id"))
    if eos is None:
        return frozenset()
    ids = eos if isinstance(eos, list) else [eos]
    if any(isinstance(token, bool) or not isinstance(token, int) or token < 0 for token in ids):
        raise ValueError(f"{source}: eos_token_id must be a token id or a list of them, got {eos!r}.")
    return frozenset(ids)


def _refuse_what_is_not_served(raw: dict[str, Any], source: str) -> None:
    if raw.get("use_sliding_window"):
        raise ValueError(f"{source}: use_sliding_window is true; only full attention is served.")
    if any(kind != "full_attention" for kind in raw.get("layer_types") or []):
        raise ValueError(f"{source}: layer_types must all be 'full_attention', got {sorted(set(raw['layer_types']))}.")
    if raw.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{source}: hidden_act must be 'silu', got {raw['hidden_act']!r}.")
    if raw.get("quantization_config"):
        raise ValueError(f"{source}: quantization_config is set; only plain float checkpoints are served.")
