"""Random models have the published shapes, and every engine reads them."""

import pytest
import random_models
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from nanovllm import LLM, SamplingParams


@pytest.mark.parametrize("name", random_models.SHAPES)
def test_the_tensors_are_those_of_transformers(name):
    shape = random_models.SHAPES[name]
    config = AutoConfig.for_model(**random_models.config(shape))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    theirs = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if shape.tied:
        del theirs["lm_head.weight"]
    ours = {"model.embed_tokens.weight": (shape.vocab, shape.hidden), "model.norm.weight": (shape.hidden,)}
    if not shape.tied:
        ours["lm_head.weight"] = (shape.vocab, shape.hidden)
    for layer in range(shape.layers):
        for key, size in random_models.layer_tensors(shape).items():
            ours[f"model.layers.{layer}.{key}"] = size
    assert ours == theirs


def test_qwen3_0_6b_has_its_published_parameters():
    """596,049,920, as the hub says of Qwen/Qwen3-0.6B; tests/course counts them from the formula."""
    shape = random_models.SHAPES["qwen3-0.6b"]
    sizes = random_models.layer_tensors(shape).values()
    layer = sum(torch.Size(size).numel() for size in sizes)
    assert shape.vocab * shape.hidden + shape.hidden + shape.layers * layer == 596_049_920


@torch.inference_mode()
def test_transformers_draws_the_same_tokens():
    with random_models.model_folder("random:tiny", seed=1) as folder:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        prompt = list(range(20, 50))
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        with LLM(folder, dtype="float32", device="cpu") as llm:
            params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
            got = llm.generate(prompt, params, use_tqdm=False)[0]["token_ids"]
    assert got == expected[0, len(prompt) :].tolist()
    assert not folder.exists()
    assert len(set(got)) > 3


def test_a_tokenizer_is_put_beside_the_weights_where_an_engine_insists():
    with random_models.model_folder("random:tiny", tokenizer=True) as folder:
        assert (folder / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        ("random:qwen9", ValueError, "random:qwen3-0.6b"),
        ("no/such/folder", FileNotFoundError, "no/such/folder"),
    ],
)
def test_an_unknown_model_is_named(model, error, words):
    with pytest.raises(error, match=words), random_models.model_folder(model):
        pass
