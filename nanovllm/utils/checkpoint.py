"""Where a model comes from: a folder, a hub name, or the model that ships with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]


def resolve_model(model: str | Path) -> Path:
    """The local folder of a model: `model` itself, or the hub's files of that name in the local cache.

    Raises:
        FileNotFoundError: neither a folder nor a hub name that can be fetched; says why.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    name = str(model)
    if folder.exists():
        raise FileNotFoundError(f"model={name!r} is a file; it must be the folder of a checkpoint.")
    if name.count("/") != 1 or name.startswith(("/", ".", "~")):
        raise FileNotFoundError(
            f"model={name!r} is not a folder, and it is not a hub name either (these look like 'Qwen/Qwen3-0.6B')."
        )
    from huggingface_hub import snapshot_download  # a second to import, and only needed here

    try:
        return Path(snapshot_download(name, allow_patterns=FILES))
    except Exception as error:  # no network, no such repository, no right to read it: the library has a type for each
        raise FileNotFoundError(
            f"model={name!r} is no local folder, and the hub did not give it: {type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"
        ) from error


def load_tokenizer(folder: Path) -> Any | None:
    """The tokenizer of a checkpoint (transformers'), or None where the folder has none.

    Raises ValueError where its files are there but cannot be read.
    """
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        return None
    from transformers import AutoTokenizer  # seconds to import: models without a tokenizer need none of it

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ValueError(f"the tokenizer in {folder} cannot be read: {type(error).__name__}: {error}") from error
