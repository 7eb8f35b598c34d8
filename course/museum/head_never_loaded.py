"""A tied LM head that the loader never fills, because the file holds no tensor of that name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from course.museum import Exhibit


class TinyModel(nn.Module):
    """An embedding and a head, as a constructor leaves them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(6, 4)
        self.lm_head = nn.Linear(4, 6, bias=False)


def buggy(model: TinyModel, tensors: dict[str, torch.Tensor]) -> None:
    """Fill the model from a checkpoint whose head is tied to the embedding."""
    model.load_state_dict(tensors, strict=False)


def fixed(model: TinyModel, tensors: dict[str, torch.Tensor]) -> None:
    """The same; the head becomes the embedding's tensor, and whatever else is missing or left over is an error."""
    model.lm_head.weight = model.embed_tokens.weight
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if set(missing) - {"lm_head.weight"} or unexpected:
        raise ValueError(f"missing: {missing}, unexpected: {unexpected}")


def detect(load: Callable[[TinyModel, dict[str, torch.Tensor]], None]) -> None:
    """Fill every parameter with NaN before loading: what is still NaN afterwards was never loaded."""
    model = TinyModel()
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    load(model, {"embed_tokens.weight": torch.ones(6, 4)})
    left = [name for name, parameter in model.named_parameters() if parameter.isnan().any()]
    assert not left, f"after loading, these parameters still hold what was there before: {left}"


EXHIBIT = Exhibit(
    name="head_never_loaded",
    chapter="03_weight_loading",
    title="A tied head that nobody loads",
    symptom="The checkpoint has no lm_head.weight, since the head is the embedding. A loader that forgives missing tensors "
    "leaves the head as it was made: the loss is that of a model that knows nothing, and no message says why.",
    buggy=buggy,
    fixed=fixed,
    detect=detect,
    source="load_state_dict(strict=False) in many scripts; every Qwen3 up to 4B has a tied head.",
)
