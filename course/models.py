"""Which model the notebooks use: the embedded one, or the one that the environment variable ``NANOVLLM_MODEL`` names."""

from __future__ import annotations

import html
import os

VARIABLE = "NANOVLLM_MODEL"


def chosen() -> str:
    """Return the model for ``LLM(...)``: what ``NANOVLLM_MODEL`` says (a folder or a hub name), else the embedded one."""
    from nanovllm.config import EMBEDDED_MODEL

    return os.environ.get(VARIABLE, "").strip() or str(EMBEDDED_MODEL)


def is_embedded() -> bool:
    """Tell whether the notebooks use the model that ships with the package."""
    return not os.environ.get(VARIABLE, "").strip()


def dtype() -> str:
    """Return float32 for the embedded model, so that verdicts of equality hold on every device, else ``auto``."""
    return "float32" if is_embedded() else "auto"


def label() -> str:
    """Return the chosen model's name for people, without the path of this machine's packages."""
    return "the embedded tiny Qwen3" if is_embedded() else os.path.basename(chosen().rstrip("/"))


def show(llm) -> None:
    """Display what the model of the engine `llm` is made of."""
    from IPython.display import display

    config = llm.model_config
    rows = {
        "model": label(),
        "layers": config.num_hidden_layers,
        "hidden size": config.hidden_size,
        "query heads, KV heads, head size": f"{config.num_attention_heads}, {config.num_key_value_heads}, "
        f"{config.head_dim}",
        "vocabulary": f"{config.vocab_size:,} tokens",
        "longest sequence here": f"{llm.max_model_len:,} tokens",
    }
    width = max(map(len, rows))
    cells = "".join(
        f'<tr><th style="text-align: left">{html.escape(key)}</th><td style="text-align: left">'
        f"{html.escape(str(value))}</td></tr>"
        for key, value in rows.items()
    )
    text = "\n".join(f"{key:<{width}}  {value}" for key, value in rows.items())
    display({"text/plain": text, "text/html": f"<table>{cells}</table>"}, raw=True)
