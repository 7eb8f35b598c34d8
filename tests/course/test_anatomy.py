"""The parts that the lesson on Qwen3's forward pass hands out, against transformers and against torch's own counter."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from course import anatomy, plots
from course import anatomy_figures as figures
from course.exercises import CORRECT, WRONG, grade
from nanovllm import LLM, SamplingParams
from nanovllm.config import EMBEDDED_MODEL, ModelConfig

PROMPT = "One day Lily found a red ball under the bed. Lily"


@pytest.fixture(scope="module")
def llm():
    with LLM(device="cpu", dtype="float32") as llm:
        yield llm


@pytest.fixture(scope="module")
def transformers_model():
    return anatomy.load_transformers(EMBEDDED_MODEL)


def shape(**changes) -> ModelConfig:
    """A small model whose sizes are all different, so that no two can be mistaken for one another."""
    sizes = dict(vocab_size=199, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6)
    sizes |= dict(num_key_value_heads=2, head_dim=20, tie_word_embeddings=True, attention_bias=False)
    return dataclasses.replace(anatomy.PUBLISHED["Qwen3-0.6B"], **(sizes | changes))


SHAPES = {
    "tied": shape(),
    "untied": shape(tie_word_embeddings=False),
    "biased": shape(attention_bias=True),
    "one KV head": shape(num_key_value_heads=1),
    "all KV heads": shape(num_key_value_heads=6),
    **anatomy.PUBLISHED,
}


# --- parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(5, 48), (5, 3, 16)])
def test_rms_norm_equals_transformers(size):
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    torch.manual_seed(0)
    x, gain = 0.01 * torch.randn(size), torch.randn(size[-1])
    theirs = Qwen3RMSNorm(size[-1], eps=1e-4)
    theirs.weight.data = gain
    torch.testing.assert_close(anatomy.rms_norm(x, gain, 1e-4), theirs(x))


@pytest.mark.parametrize(("head_dim", "theta"), [(32, 10_000.0), (128, 1_000_000.0), (6, 100.0)])
def test_rope_equals_transformers(head_dim, theta):
    from transformers import Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding, apply_rotary_pos_emb

    parameters = {"rope_type": "default", "rope_theta": theta}
    rotary = Qwen3RotaryEmbedding(Qwen3Config(head_dim=head_dim, rope_parameters=parameters))
    torch.manual_seed(0)
    positions = torch.tensor([0, 1, 7, 300])
    q, k = torch.randn(4, 3, head_dim), torch.randn(4, 2, head_dim)
    cos, sin = rotary(q, positions[None])
    their_q, their_k = apply_rotary_pos_emb(q[None], k[None], cos, sin, unsqueeze_dim=2)
    angles = anatomy.rotation_angles(positions, head_dim, theta)
    torch.testing.assert_close(anatomy.rotate(q, angles), their_q[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(anatomy.rotate(k, angles), their_k[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 8), (8, 4), (8, 2), (8, 1), (6, 3)])
def test_kv_head_equals_transformers_repetition(heads, kv_heads):
    from transformers.models.qwen3.modeling_qwen3 import repeat_kv

    numbered = torch.arange(kv_heads).view(1, kv_heads, 1, 1)
    theirs = repeat_kv(numbered, heads // kv_heads).flatten().tolist()
    assert [anatomy.kv_head(h, heads, kv_heads) for h in range(heads)] == theirs


# --- counts --------------------------------------------------------------------------------------------------------


def part_of(name: str) -> str:
    if "embed_tokens" in name:
        return "embedding"
    if "lm_head" in name:
        return "LM head"
    if "norm" in name:
        return "norms"
    return "MLP" if ".mlp." in name else "projections"


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_parameters_by_part_equal_transformers(config):
    counted = dict.fromkeys(anatomy.PARTS, 0)
    for name, parameter in anatomy.transformers_on_meta(config).named_parameters():
        counted[part_of(name)] += parameter.numel()
    assert anatomy.parameters_by_part(config) == counted
    assert anatomy.count_parameters(config) == anatomy.transformers_parameters(config)


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_operations_equal_torchs_counter(config):
    # Two lengths tell what grows with the tokens from what grows with their square.
    for num_tokens in (1, 7, 64):
        ours = num_tokens * sum(anatomy.flops_by_part(config, num_tokens).values())
        assert ours == anatomy.transformers_flops(config, num_tokens)


def test_balance_is_where_attention_equals_the_rest():
    for config in anatomy.PUBLISHED.values():
        context = anatomy.balance_context(config)
        flops = anatomy.flops_by_part(config, 1)
        attention = flops.pop("attention") * context
        assert attention == pytest.approx(sum(flops.values()))


def test_what_the_lesson_says_about_the_counts():
    counts = {name: anatomy.parameters_by_part(config) for name, config in anatomy.PUBLISHED.items()}
    counts["embedded"] = anatomy.parameters_by_part(ModelConfig.from_folder(EMBEDDED_MODEL))
    assert all(max(parts, key=parts.get) == "MLP" for parts in counts.values())
    small, large = counts["Qwen3-0.6B"], counts["Qwen3-8B"]
    assert round(100 * small["embedding"] / sum(small.values())) == 26
    assert round(100 * (large["embedding"] + large["LM head"]) / sum(large.values())) == 15
    flops = anatomy.flops_by_part(anatomy.PUBLISHED["Qwen3-8B"], 1024)
    assert round(100 * flops["attention"] / sum(flops.values())) == 4


# --- the engine, watched -------------------------------------------------------------------------------------------


def test_the_watched_run_equals_transformers(llm, transformers_model):
    ids = llm.tokenizer.encode(PROMPT)
    run = anatomy.run_engine(llm, ids)
    with torch.no_grad():
        theirs = transformers_model(torch.tensor([ids]), output_hidden_states=True)
    assert anatomy.difference(run.logits, theirs.logits[0]) < 1e-4
    for layer, hidden in enumerate(theirs.hidden_states[1:-1]):
        assert anatomy.difference(run[f"layers.{layer}"], hidden[0]) < 1e-4


def test_watching_leaves_the_engine_as_it_was(llm):
    ids = llm.tokenizer.encode(PROMPT + " played with it until the sun went down.")
    greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    before = llm.generate([ids], greedy, use_tqdm=False)[0]["token_ids"]
    caches = [layer.kv_cache for layer in llm.model_runner.model.attention_layers()]
    contents = [cache.clone() for cache in caches]
    anatomy.run_engine(llm, list(reversed(ids)))
    for layer, cache, content in zip(llm.model_runner.model.attention_layers(), caches, contents, strict=True):
        assert layer.kv_cache is cache and torch.equal(cache, content)
    assert not any(module._forward_hooks for module in llm.model_runner.model.modules())
    # The second run of the same prompt reads the prefix that the first one left in the cache.
    again = llm.generate([ids], greedy, use_tqdm=False)[0]
    assert again["token_ids"] == before and again["metrics"]["prefix_cached_tokens"] > 0


def test_greedy_by_transformers_equals_the_engine(llm, transformers_model):
    ids = llm.tokenizer.encode(PROMPT)
    greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    ours = llm.generate([ids], greedy, use_tqdm=False)[0]["token_ids"]
    assert anatomy.greedy_by_transformers(transformers_model, ids, 12) == ours


def test_weights_have_the_published_names_and_are_float32():
    weights = anatomy.load_weights(EMBEDDED_MODEL)
    names = {
        name for name, _ in anatomy.transformers_on_meta(ModelConfig.from_folder(EMBEDDED_MODEL)).named_parameters()
    }
    assert set(weights) == names
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_a_result_that_is_not_finite_differs_from_everything():
    x = torch.ones(2, 3)
    for broken in (x * torch.nan, x * torch.inf):
        assert anatomy.difference(broken, x) == anatomy.difference(x, broken) == float("inf")


def test_agree_tells_rounding_from_mistakes(capsys):
    x = torch.linspace(-1, 1, 12).view(3, 4)
    for other, verdict in ((x + 1e-6, True), (x * 1.01, False), (x[:2], False), (x * torch.nan, False)):
        assert (anatomy.difference(other, x) < 1e-4) is verdict
        anatomy.agree("x", other, x)
        assert capsys.readouterr().out.endswith(f"< 1e-04: {verdict}\n")


# --- exercises and figures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exercise", "right", "wrong"),
    [
        ("rms-norm", anatomy.rms_norm, lambda x, gain, eps: x * gain),
        ("rotate", anatomy.rotate, lambda x, angles: anatomy.rotate(x, 2 * angles)),
        ("kv-head", anatomy.kv_head, lambda h, heads, kv_heads: min(h, kv_heads - 1)),
    ],
)
def test_yours_is_taken_once_it_is_right(exercise, right, wrong, capsys):
    def mine(*arguments):
        return right(*arguments)

    def stub(*arguments):
        return ...

    assert anatomy.yours_or_ours(exercise, mine) is mine
    assert capsys.readouterr().out == "mine: from here on yours\n"
    for not_yours in (wrong, stub, right):  # `right` is what the notebook's name means when a cell runs twice
        assert anatomy.yours_or_ours(exercise, not_yours) is right
        assert "until yours is right" in capsys.readouterr().out


def test_the_count_is_judged():
    assert grade("count-parameters", anatomy.count_parameters).verdict == CORRECT
    assert grade("count-parameters", lambda config: anatomy.count_parameters(config) + 1).verdict == WRONG
    assert grade("count-parameters", lambda config: None).verdict == WRONG


def test_head_habits_are_means_over_the_queries():
    weights = torch.zeros(1, 2, 4, 4)
    weights[0, 0] = torch.eye(4).roll(-1, 1)  # head 0 looks one back
    weights[0, 1, :, 0] = 1.0  # head 1 looks at the first token
    habits = figures.head_habits(weights)
    assert habits["on the token before"].tolist() == [[1.0, 0.0]]
    assert habits["on the first token"].tolist() == [[0.0, 1.0]]


def test_labels_show_spaces_and_survive_any_token(llm):
    assert figures.label(llm.tokenizer, llm.tokenizer.encode(" Lily")[0]).startswith("·")
    labels = [figures.label(llm.tokenizer, token) for token in range(llm.model_config.vocab_size)]
    assert all(text.replace(r"\$", "").count("$") == 0 for text in labels)


def test_shares_add_up_to_the_whole_bar():
    models = {"small": shape(tie_word_embeddings=False), **anatomy.PUBLISHED}
    figure = figures.draw_shares(models, (1024, 32768))
    for axis in figure.axes:
        widths = [sum(bars[row].get_width() for bars in axis.containers) for row in range(len(models))]
        assert widths == pytest.approx([1.0, 1.0, 1.0])
    first_parts = [bars[1].get_width() for bars in figure.axes[0].containers]
    counts = anatomy.parameters_by_part(models["Qwen3-0.6B"])
    assert first_parts == pytest.approx([counts[part] / sum(counts.values()) for part in anatomy.PARTS])


def test_the_lens_shows_the_likeliest_tokens(llm):
    probabilities = torch.rand(3, 5, llm.model_config.vocab_size).softmax(-1)
    ids = llm.tokenizer.encode(PROMPT)[:5]
    for layer in range(3):
        for position in range(5):
            axis = figures.draw_lens_at(probabilities, ids, llm.tokenizer, layer, position).axes[0]
            best = probabilities[layer, position].topk(8)
            assert [tick.get_text() for tick in axis.get_yticklabels()] == [
                figures.label(llm.tokenizer, token) for token in best.indices.tolist()
            ]
            assert [bar.get_width() for bar in axis.patches] == pytest.approx(best.values.tolist())


def test_every_figure_can_be_drawn(llm):
    config = shape(tie_word_embeddings=False)
    ids = llm.tokenizer.encode(PROMPT)
    weights = torch.rand(2, 4, len(ids), len(ids)).softmax(-1)
    stream = torch.randn(3, len(ids), 16)
    errors = {name: torch.rand(len(ids)) for name in ("a", "b", "c", "d")}
    for drawn in (
        figures.draw_map(config),
        figures.draw_rotation(config.head_dim, config.rope_theta),
        figures.draw_attention(weights[0, 0], [figures.label(llm.tokenizer, token) for token in ids], "a head"),
        figures.draw_head_habits(weights),
        figures.draw_stream(stream, stream[1:], stream[1:]),
        figures.draw_lens(torch.rand(3, len(ids), 300).softmax(-1), ids, llm.tokenizer),
        figures.draw_errors(errors),
    ):
        assert plots.png(drawn).startswith(b"\x89PNG")
