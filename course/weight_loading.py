"""Weight loading: safetensors by hand, what one tensor-parallel rank reads, mistakes that load without a complaint.

Which part of a checkpoint's tensor a rank holds is asked from the engine's own layers (`rank_part`), not computed again.
"""

from __future__ import annotations

import functools
import json
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from course import anatomy, plots
from course.exercises import Wrong, checker, expect_equal
from course.recorded import ROOT
from nanovllm.attention import get_backend
from nanovllm.config import ModelConfig
from nanovllm.models.qwen3 import Qwen3ForCausalLM
from nanovllm.utils.context import TensorParallel
from nanovllm.utils.loader import INDEX_FILE, SINGLE_FILE, iterate_tensors, load_model

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I8": torch.int8,
}
"""The names of dtypes in a safetensors header, as far as this lesson meets them."""

KINDS = ("embedding", "attention", "MLP", "norms", "LM head")

# --- the file --------------------------------------------------------------------------------------------------------


def read_header(path: str | Path) -> tuple[int, dict[str, Any]]:
    """(length N of the JSON header, the header) of a safetensors file: 8 bytes of N, little-endian, then N of JSON."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return length, json.loads(file.read(length))


def read_tensor(path: str | Path, name: str) -> torch.Tensor:
    """One tensor of a safetensors file, in its own dtype; reads the header and this tensor's bytes, nothing else."""
    length, header = read_header(path)
    entry = header[name]
    start, stop = entry["data_offsets"]
    with open(path, "rb") as file:
        file.seek(8 + length + start)
        data = bytearray(file.read(stop - start))
    return torch.frombuffer(data, dtype=DTYPES[entry["dtype"]]).reshape(entry["shape"])


def kind(name: str) -> str:
    """Which of KINDS the tensor of that published name belongs to."""
    if "embed_tokens" in name:
        return "embedding"
    if "lm_head" in name:
        return "LM head"
    if "norm" in name:
        return "norms"
    return "MLP" if ".mlp." in name else "attention"


def mapped_kib(path: str | Path) -> int:
    """KiB of this process's memory that show pages of the file; 0 where no mapping has touched any. Linux only."""
    found, mine = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split(" ", 1)[0] and not line.split(" ", 1)[0].endswith(":"):
            mine = line.endswith(Path(path).name)
        elif mine and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


def split_checkpoint(folder: Path, target: Path, max_bytes: int) -> dict[str, str]:
    """Write a checkpoint as several files of at most `max_bytes` of data each, with an index; return its weight map."""
    from safetensors.torch import save_file

    groups: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in iterate_tensors(folder):
        if groups[-1] and sum(t.nbytes for t in groups[-1].values()) + tensor.nbytes > max_bytes:
            groups.append({})
        groups[-1][name] = tensor
    weight_map = {}
    for number, group in enumerate(groups, start=1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        save_file(group, target / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(group, file)
    index = {"metadata": {"total_size": sum(t.nbytes for g in groups for t in g.values())}, "weight_map": weight_map}
    (target / INDEX_FILE).write_text(json.dumps(index, indent=1), encoding="utf-8")
    (target / "config.json").write_text((folder / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    return weight_map


def changed_checkpoint(folder: Path, target: Path, changes: Mapping[str, torch.Tensor | None]) -> Path:
    """Write a copy of a checkpoint with some tensors replaced or added, or (None) left out; return its folder."""
    from safetensors.torch import save_file

    tensors = {name: tensor.clone() for name, tensor in iterate_tensors(folder)}
    for name, tensor in changes.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor.contiguous().clone()
    target.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target / SINGLE_FILE, metadata={"format": "pt"})
    (target / "config.json").write_text((folder / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    return target


# --- the model -------------------------------------------------------------------------------------------------------


def empty_model(config: ModelConfig, rank: int = 0, ranks: int = 1, fill: float | None = None) -> Qwen3ForCausalLM:
    """The engine's model, before loading, as rank `rank` of `ranks` holds it; every parameter `fill` if given."""
    model = Qwen3ForCausalLM(config, get_backend("reference"), TensorParallel(rank, ranks))
    if fill is not None:
        for parameter in model.parameters():
            parameter.data.fill_(fill)
    return model


@functools.cache
def parameter_bytes(config: ModelConfig, ranks: int = 1, itemsize: int = 2) -> int:
    """Bytes of the weights that one of `ranks` ranks holds, from the engine's own layers on the meta device."""
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config, get_backend("reference"), TensorParallel(0, ranks), max_positions=16)
    return sum(parameter.numel() for parameter in model.parameters()) * itemsize


@dataclass(frozen=True)
class Part:
    """What one rank keeps of a checkpoint's tensor: rows and columns, each as a half-open range."""

    shape: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]

    @property
    def numel(self) -> int:
        return (self.rows[1] - self.rows[0]) * (self.columns[1] - self.columns[0])


@functools.cache
def rank_parts(config: ModelConfig, rank: int, ranks: int, layer: int = 0) -> dict[str, Part]:
    """Published name -> the part that the engine's loader gives this rank, for the table and the matrices of a layer.

    Every element of a stand-in for the checkpoint's tensor is its own index, so what arrives tells where it came from.
    """
    model = empty_model(config, rank, ranks, fill=-1.0)
    parameters = dict(model.named_parameters())
    h, d, wide = config.hidden_size, config.head_dim, config.intermediate_size
    q, kv = config.num_attention_heads * d, config.num_key_value_heads * d
    prefix = f"model.layers.{layer}."
    shapes = {
        "model.embed_tokens.weight": (config.vocab_size, h),
        f"{prefix}self_attn.q_proj.weight": (q, h),
        f"{prefix}self_attn.k_proj.weight": (kv, h),
        f"{prefix}self_attn.v_proj.weight": (kv, h),
        f"{prefix}self_attn.o_proj.weight": (h, q),
        f"{prefix}mlp.gate_proj.weight": (wide, h),
        f"{prefix}mlp.up_proj.weight": (wide, h),
        f"{prefix}mlp.down_proj.weight": (h, wide),
    }
    parts = {}
    for name, shape in shapes.items():
        *path, module, _ = name.split(".")
        packed, shard = model.packed_modules_mapping.get(module, (module, None))
        parameter = parameters[".".join([*path, packed, "weight"])]
        parameter.data.fill_(-1.0)
        # float32 counts exactly up to 2^24, far beyond the tables of the tiny model.
        parameter.weight_loader(parameter, torch.arange(shape[0] * shape[1], dtype=torch.float32).reshape(shape), shard)
        arrived = parameter.data[parameter.data >= 0].long()
        rows, columns = arrived // shape[1], arrived % shape[1]
        parts[name] = Part(
            shape,
            (int(rows.min()), int(rows.max()) + 1),
            (int(columns.min()), int(columns.max()) + 1),
        )
    return parts


def loss(model: Qwen3ForCausalLM, token_ids: list[int]) -> float:
    """Mean surprise of the model at each next token of a text, in nats."""
    llm = SimpleNamespace(model_runner=SimpleNamespace(model=model, block_size=16))
    logits = anatomy.run_engine(llm, token_ids).logits.float()
    return F.cross_entropy(logits[:-1], torch.tensor(token_ids[1:])).item()


# --- mistakes that load without a complaint --------------------------------------------------------------------------


def silent_mistakes(config: ModelConfig) -> dict[str, Callable[[Qwen3ForCausalLM], None]]:
    """What each mistake of a careless loader leaves in a model that was loaded right; every shape stays right."""
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim

    def swap(parameter: torch.nn.Parameter, size: int, start: int) -> None:
        first, second = (parameter.data[start + i * size : start + (i + 1) * size].clone() for i in (0, 1))
        parameter.data[start : start + size], parameter.data[start + size : start + 2 * size] = second, first

    def k_and_v(model: Qwen3ForCausalLM) -> None:
        for layer in model.model.layers:
            swap(layer.self_attn.qkv_proj.weight, kv, q)

    def gate_and_up(model: Qwen3ForCausalLM) -> None:
        for layer in model.model.layers:
            swap(layer.mlp.gate_up_proj.weight, config.intermediate_size, 0)

    def transposed(model: Qwen3ForCausalLM) -> None:
        for layer in model.model.layers:
            weight = layer.self_attn.o_proj.weight
            weight.data = weight.data.T.contiguous()

    def norm_of_ones(model: Qwen3ForCausalLM) -> None:
        model.model.layers[3].post_attention_layernorm.weight.data.fill_(1.0)

    def q_norm_by_one_number(model: Qwen3ForCausalLM) -> None:
        for layer in model.model.layers:
            gain = layer.self_attn.q_norm.weight
            gain.data.copy_(gain.data[:1].clone())  # as copy_ does with a tensor of shape (1,)

    def head_of_zeros(model: Qwen3ForCausalLM) -> None:
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight), requires_grad=False)

    return {
        "k and v swapped": k_and_v,
        "gate and up swapped": gate_and_up,
        "o_proj transposed": transposed,
        "one norm left at 1": norm_of_ones,
        "q_norm broadcast from (1,)": q_norm_by_one_number,
        "head left at 0": head_of_zeros,
    }


# --- memory while loading --------------------------------------------------------------------------------------------


def write_random_checkpoint(folder: Path, like: ModelConfig, seed: int = 0) -> ModelConfig:
    """Write a larger model of the same kind with random bfloat16 weights: 8 layers, hidden size 768; about 80 MiB."""
    from safetensors.torch import save_file

    raw = {
        "model_type": "qwen3",
        "vocab_size": like.vocab_size,
        "hidden_size": 768,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    config = ModelConfig.from_dict(raw)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.empty(parameter.shape, dtype=torch.bfloat16).uniform_(-0.05, 0.05, generator=generator)
        for name, parameter in anatomy.transformers_on_meta(config).named_parameters()
        if name != "lm_head.weight"
    }
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    return config


def _anonymous_bytes() -> int:
    """Memory of this process that is no file's: mapped checkpoints do not count. Linux only."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("this system does not tell RssAnon")


def peak_of_loading(way: str, folder: Path) -> int:
    """Peak memory in bytes of a fresh process that loads the checkpoint in one of WAYS_TO_LOAD, above its start.

    In a process that has run for a while, memory that earlier cells freed would be used again and hide the peak.
    """
    command = [sys.executable, "-c", _MEASURE, way, str(folder)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return int(finished.stdout)


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Watch this process's own memory; the function that it gives tells the peak in bytes above the start."""
    start = _anonymous_bytes()
    peak, done = start, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, _anonymous_bytes())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: max(peak, _anonymous_bytes()) - start
    finally:
        done.set()
        thread.join()


def load_like_the_engine(config: ModelConfig, folder: Path) -> Qwen3ForCausalLM:
    """One tensor at a time out of the mapped file, converted on its way into the parameter."""
    model = empty_model(config)
    load_model(model, folder)
    return model


def load_whole_file_first(config: ModelConfig, folder: Path, convert_first: bool = False) -> Qwen3ForCausalLM:
    """Reads the file into memory, makes tensors of all of it (`convert_first`: in float32), then fills the model."""
    from safetensors.torch import load

    model = empty_model(config)
    tensors = load((folder / SINGLE_FILE).read_bytes())
    if convert_first:
        tensors = {name: tensor.float() for name, tensor in tensors.items()}
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        *path, module, what = name.split(".")
        packed, shard = model.packed_modules_mapping.get(module, (module, None))
        parameter = parameters[".".join([*path, packed, what])]
        if hasattr(parameter, "weight_loader"):
            parameter.weight_loader(parameter, tensor, shard)
        else:
            parameter.data.copy_(tensor)
    return model


WAYS_TO_LOAD: dict[str, Callable[[ModelConfig, Path], Qwen3ForCausalLM]] = {
    "the engine: tensor by tensor": load_like_the_engine,
    "the whole file first": load_whole_file_first,
    "the whole file, converted": functools.partial(load_whole_file_first, convert_first=True),
}

_MEASURE = """
import sys
from pathlib import Path
from course import weight_loading
from nanovllm.config import ModelConfig
folder = Path(sys.argv[2])
config = ModelConfig.from_folder(folder)
with weight_loading.peak_memory() as peak:
    model = weight_loading.WAYS_TO_LOAD[sys.argv[1]](config, folder)
    print(peak())
"""

# --- pictures --------------------------------------------------------------------------------------------------------

_COLOUR = dict(zip(KINDS, plots.COLOURS))


def draw_file(header: Mapping[str, Any], rows: int = 8) -> Any:
    """The file's bytes in reading order, in `rows` lines of equal length, coloured by kind of tensor."""
    entries = sorted((entry["data_offsets"], name) for name, entry in header.items() if name != "__metadata__")
    total = entries[-1][0][1]
    line = total / rows
    fig, axis = plots.figure(figsize=(9.0, 3.4))
    seen = set()
    for (start, stop), name in entries:
        at = start
        while at < stop:
            row = min(int(at // line), rows - 1)
            end = min(stop, (row + 1) * line) if row < rows - 1 else stop
            label = kind(name) if kind(name) not in seen else None
            seen.add(kind(name))
            axis.barh(
                row, (end - at) / 1024, left=(at - row * line) / 1024, height=0.8, color=_COLOUR[kind(name)], edgecolor="#FBFBF9",
                linewidth=0.5, label=label,
            )  # fmt: skip
            at = end
    axis.set(
        xlim=(0, line / 1024), title="The data of the file, read like a page", xlabel="KiB from the start of the line"
    )
    axis.set_yticks(range(rows), [f"{row * line / 2**20:.1f} MiB" for row in range(rows)])
    axis.invert_yaxis()
    axis.grid(visible=False)
    axis.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return fig


def draw_rank(config: ModelConfig, rank: int, ranks: int) -> Any:
    """Each matrix of layer 0, and the table, to scale by its rows and columns; coloured is what this rank reads."""
    rank = min(rank, ranks - 1)
    parts = rank_parts(config, rank, ranks)
    fig, axes = plots.figure(1, len(parts), figsize=(11.0, 3.3))
    mine = sum(part.numel for part in parts.values())
    whole = sum(part.shape[0] * part.shape[1] for part in parts.values())
    for axis, (name, part) in zip(axes, parts.items(), strict=True):
        rows, columns = part.shape
        axis.add_patch(_rectangle((0, 0), columns, rows, "#E4E6E8"))
        axis.add_patch(
            _rectangle(
                (part.columns[0], part.rows[0]),
                part.columns[1] - part.columns[0],
                part.rows[1] - part.rows[0],
                _COLOUR[kind(name)],
            )
        )
        axis.set(xlim=(0, columns), ylim=(rows, 0))
        axis.set_title(f"{name.split('.')[-2]}\n{rows} x {columns}", fontsize=9)
        axis.set_xticks([part.columns[0], part.columns[1]], [str(c) for c in part.columns])
        axis.set_yticks([part.rows[0], part.rows[1]], [str(r) for r in part.rows])
        axis.grid(visible=False)
    fig.suptitle(
        f"Rank {rank} of {ranks}: {mine * 2 / 2**20:.2f} of {whole * 2 / 2**20:.2f} MiB (bfloat16) of the table and layer 0",
        fontsize=11,
        x=0.01,
        ha="left",
    )
    return fig


def _rectangle(corner: tuple[float, float], width: float, height: float, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, facecolor=colour, edgecolor="#8A8F98", linewidth=0.6)


def draw_losses(losses: Mapping[str, float], know_nothing: float) -> Any:
    """Loss of the model with each mistake, beside the right one and a model that knows nothing."""
    fig, axis = plots.figure(figsize=(8.0, 3.2))
    names = list(losses)
    colours = [plots.COLOURS[0]] + [plots.COLOURS[1]] * (len(names) - 1)
    axis.barh(range(len(names)), list(losses.values()), color=colours)
    axis.axvline(know_nothing, color=plots.COLOURS[6], linestyle="--", linewidth=1.2)
    axis.annotate("knows nothing: ln V", (know_nothing, 0.0), xytext=(4, 0), textcoords="offset points", fontsize=9)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set(xlabel="loss in nats a token", title="Same file, same shapes, no error message")
    axis.grid(axis="y", visible=False)
    return fig


def draw_peaks(peaks: Mapping[str, float], model: float) -> Any:
    """Peak memory of each way to load, in MiB, beside the model's own size."""
    fig, axis = plots.figure(figsize=(8.0, 2.3))
    axis.barh(range(len(peaks)), list(peaks.values()), color=plots.COLOURS[0])
    axis.axvline(model, color=plots.COLOURS[6], linestyle="--", linewidth=1.2, label="the model itself")
    axis.set_yticks(range(len(peaks)), list(peaks))
    axis.invert_yaxis()
    axis.set(xlabel="peak of the process's own memory while loading, MiB")
    axis.grid(axis="y", visible=False)
    axis.legend(loc="upper right")
    return fig


# --- exercises of notebook 03 ----------------------------------------------------------------------------------------


@functools.cache
def _example_file() -> Path:
    import atexit
    import shutil
    import tempfile

    from safetensors.torch import save_file

    folder = Path(tempfile.mkdtemp(prefix="lesson-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    generator = torch.Generator().manual_seed(5)
    tensors = {
        "first": torch.randn(3, 4, generator=generator),
        "second": torch.randn(5, 2, generator=generator).to(torch.bfloat16),
        "third": torch.arange(6, dtype=torch.int64).reshape(1, 2, 3),
    }
    save_file(tensors, folder / "example.safetensors")
    return folder / "example.safetensors"


@checker("read-tensor")
def _read_tensor(reader: Callable[[Path, str], torch.Tensor]) -> str:
    from safetensors.torch import load_file

    path = _example_file()
    for name, want in load_file(path).items():
        got = reader(path, name)
        if not isinstance(got, torch.Tensor):
            raise Wrong(f"read_tensor(path, {name!r}) returned a {type(got).__name__}, not a tensor.")
        expect_equal(f"the dtype of {name!r}", str(got.dtype), str(want.dtype), "the header names it; DTYPES has it")
        expect_equal(f"the shape of {name!r}", tuple(got.shape), tuple(want.shape))
        if not torch.equal(got, want):
            raise Wrong(
                f"{name!r} starts with {got.flatten()[0].item():.4g}, but should start with {want.flatten()[0].item():.4g}. "
                "data_offsets count from the first byte after the header, which itself starts at byte 8."
            )
    return "You read a checkpoint without any library, and only the bytes that you asked for"


@checker("qkv-rows")
def _qkv_rows(rows: Callable[..., tuple[int, int, int]]) -> str:
    cases = [
        (("q", 0, 1, 8, 4, 32), "the whole of q on one rank"),
        (("k", 0, 1, 8, 4, 32), "k on one rank"),
        (("v", 0, 1, 8, 4, 32), "v on one rank"),
        (("q", 1, 2, 8, 4, 32), "q on rank 1 of 2"),
        (("k", 1, 2, 8, 4, 32), "k on rank 1 of 2"),
        (("v", 3, 4, 8, 4, 32), "v on rank 3 of 4"),
        (("v", 1, 2, 40, 8, 128), "v on rank 1 of 2 in the shape of Qwen3-14B"),
    ]
    for arguments, what in cases:
        got = rows(*arguments)
        want = _true_qkv_rows(*arguments)
        if not isinstance(got, tuple) or len(got) != 3:
            raise Wrong("Return three numbers: first and one-past-last row in the checkpoint, first row in qkv_proj.")
        expect_equal(
            f"{what}: first and one-past-last row in the checkpoint",
            tuple(map(int, got[:2])),
            want[:2],
            "each rank takes its own share of the heads, and k and v have KV heads",
        )
        expect_equal(
            f"{what}: first row in qkv_proj",
            int(got[2]),
            want[2],
            "the rank's qkv_proj holds only this rank's rows: q's, then k's, then v's",
        )
    return "This is what QKVParallelLinear.load_shard does"


def _true_qkv_rows(
    shard: str, rank: int, ranks: int, num_heads: int, num_kv_heads: int, head_dim: int
) -> tuple[int, int, int]:
    heads = {"q": num_heads // ranks, "k": num_kv_heads // ranks, "v": num_kv_heads // ranks}
    before = {"q": 0, "k": heads["q"], "v": heads["q"] + heads["k"]}
    first = rank * heads[shard] * head_dim
    return first, first + heads[shard] * head_dim, before[shard] * head_dim


@checker("missing-tensors")
def _missing_tensors(missing: Callable[..., Any]) -> str:
    mapping = Qwen3ForCausalLM.packed_modules_mapping
    layer = "model.layers.0."
    wanted: dict[str, tuple[str | None, ...]] = {
        "model.embed_tokens.weight": (None,),
        f"{layer}self_attn.qkv_proj.weight": ("q", "k", "v"),
        f"{layer}mlp.gate_up_proj.weight": ("gate", "up"),
        "model.norm.weight": (None,),
    }
    names = [f"{layer}self_attn.{part}_proj.weight" for part in "qkv"]
    names += [f"{layer}mlp.gate_proj.weight", f"{layer}mlp.up_proj.weight"]
    names += ["model.embed_tokens.weight", "model.norm.weight"]

    def run(without: tuple[str, ...], extra: tuple[str, ...] = ()) -> set[str]:
        return set(missing([name for name in names if name not in without] + list(extra), dict(wanted), dict(mapping)))

    expect_equal("for a complete file the set", run(()), set(), "nothing is missing there")
    one = ("model.norm.weight",)
    expect_equal(f"without {one[0]} the set", run(one), set(one))
    part = (f"{layer}self_attn.v_proj.weight",)
    expect_equal(
        "without v_proj the set", run(part), set(part), "a packed parameter is loaded when every one of its shards has come"
    )  # fmt: skip
    expect_equal(
        "without v_proj, but with one tensor too many, the set",
        run(part, ("model.layers.9.mlp.up_proj.weight",)),
        set(part),
        "counting tensors is not enough: say which",
    )
    return "A loader that ends with this check never leaves a parameter as torch.empty made it"
