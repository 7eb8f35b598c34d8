"""Fills a model's parameters from a checkpoint's safetensors files, every tensor accounted for.

A checkpoint stores q_proj, k_proj and v_proj apart; the model holds them as shards of one qkv_proj. The model's
`packed_modules_mapping` says so, and each parameter's `weight_loader` copies this rank's part to its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: those that the index names, or the single file.

    Raises:
        FileNotFoundError: names the file that is missing.
        ValueError: the index is not readable.
    """
    index = folder / INDEX_FILE
    if not index.exists():
        if not (folder / SINGLE_FILE).exists():
            raise FileNotFoundError(f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}.")
        return [folder / SINGLE_FILE]
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({Path(name) for name in weight_map.values()})  # a TypeError unless they are strings
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{index} is not a safetensors index: {type(error).__name__}: {error}") from None
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} does not exist, but {INDEX_FILE} names it.")
    return [folder / name for name in names]


def iterate_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of every tensor in the checkpoint, one at a time, memory-mapped.

    Raises ValueError where a file is corrupt or a name appears twice.
    """
    seen: dict[str, Path] = {}
    for path in checkpoint_files(folder):
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in file.keys():  # noqa: SIM118 (safe_open is no dict)
                    if name in seen:
                        raise ValueError(f"tensor {name} is in {seen[name].name} and in {path.name}.")
                    seen[name] = path
                    yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a readable safetensors file: {error}") from None


def load_model(model: nn.Module, folder: str | Path) -> None:
    """Copies the checkpoint into the model's parameters (their dtype and device stay).

    Raises:
        FileNotFoundError: a file of the checkpoint is missing.
        ValueError: a file is corrupt, or a tensor is missing, unexpected, misshapen or not of a float dtype; the
            message names the tensors.
    """
    folder = Path(folder)
    parameters = dict(model.named_parameters())
    missing = {(name, shard) for name, parameter in parameters.items() for shard in _shards(parameter)}
    tied = model.config.tie_word_embeddings
    tied_tensors: list[torch.Tensor] = []
    problems = []
    for name, tensor in iterate_tensors(folder):
        if name.endswith(
            "rotary_emb.inv_freq"
        ):  # older checkpoints store the frequencies, which follow from rope_theta
            continue
        if tied and name in ("lm_head.weight", "model.embed_tokens.weight"):
            tied_tensors.append(tensor)
            if name == "lm_head.weight":  # a copy that some checkpoints carry along
                continue
        target, shard = _locate(name, model.packed_modules_mapping)
        if (target, shard) not in missing:
            problems.append(f"unexpected: {name} {tuple(tensor.shape)}")
            continue
        missing.remove((target, shard))
        if not tensor.is_floating_point():
            problems.append(f"{name}: dtype {tensor.dtype} where a float dtype is needed")
            continue
        parameter = parameters[target]
        load = getattr(parameter, "weight_loader", _load_whole)
        try:
            load(parameter, tensor, shard)
        except ValueError as error:
            problems.append(f"misshapen: {name} {tuple(tensor.shape)}: {error}")
    for name, shard in sorted(missing, key=str):
        problems.append(f"missing: {_published(name, shard, model.packed_modules_mapping)}")
    if len(tied_tensors) == 2 and not torch.equal(*tied_tensors):
        problems.append("lm_head.weight differs from model.embed_tokens.weight, but tie_word_embeddings is true")
    if problems:
        shown = "\n  ".join(problems[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ValueError(f"{folder} does not fit the model that its config.json describes:\n  {shown}{more}")


def copy_exactly(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copies, converting the dtype only: a shape that would broadcast is refused."""
    if target.shape != source.shape:
        raise ValueError(f"shape {tuple(source.shape)} where {tuple(target.shape)} is needed")
    target.copy_(source)


def check_rows(source: torch.Tensor, rows: int) -> None:
    """Raises ValueError unless the first dimension is `rows`; a scalar has none."""
    if source.shape[:1] != (rows,):
        raise ValueError(f"shape {tuple(source.shape)} where {rows} rows are needed")


def _shards(parameter: nn.Parameter) -> tuple[str | None, ...]:
    return getattr(parameter, "shards", (None,))


def _load_whole(parameter: nn.Parameter, loaded: torch.Tensor, shard: str | None) -> None:
    copy_exactly(parameter.data, loaded)


def _locate(name: str, mapping: dict[str, tuple[str, str]]) -> tuple[str, str | None]:
    """Published tensor name -> (parameter's name here, shard)."""
    *path, module, kind = name.split(".") if name.count(".") else ["", name]
    packed, shard = mapping.get(module, (module, None))
    return ".".join([*path, packed, kind]), shard


def _published(name: str, shard: str | None, mapping: dict[str, tuple[str, str]]) -> str:
    """The inverse of `_locate`."""
    *path, module, kind = name.split(".")
    originals = [original for original, target in mapping.items() if target == (module, shard)]
    return ".".join([*path, originals[0] if originals else module, kind])
