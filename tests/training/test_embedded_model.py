"""The embedded model: what ships, what it can do, and the corpus and the training that made it."""

from __future__ import annotations

import json
import re
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "nanovllm" / "embedded_model"
sys.path.insert(0, str(ROOT / "training"))

import data  # noqa: E402
import model_card  # noqa: E402
import score  # noqa: E402
import train  # noqa: E402
from tokenizer import train_tokenizer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
trained = pytest.mark.skipif(
    not (FOLDER / "scores.json").exists(), reason="the model in the folder is a stand-in: it has no scores.json"
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def config():
    return json.loads((FOLDER / "config.json").read_text())


# ---------------------------------------------------------------- what ships


def test_weights_are_small_bf16_and_published_names():
    path = FOLDER / "model.safetensors"
    assert path.stat().st_size < 10_000_000
    with safe_open(path, "pt") as weights:
        names = set(weights.keys())
        assert {weights.get_tensor(name).dtype for name in names} == {torch.bfloat16}
    assert "lm_head.weight" not in names
    assert {"model.embed_tokens.weight", "model.norm.weight", "model.layers.0.self_attn.q_norm.weight"} <= names


def test_transformers_loads_every_tensor(config):
    model, info = AutoModelForCausalLM.from_pretrained(FOLDER, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    loaded = model.config
    assert loaded.num_attention_heads == 2 * loaded.num_key_value_heads
    assert loaded.num_key_value_heads % 4 == 0 and loaded.head_dim >= 32
    assert loaded.rope_parameters["rope_theta"] == config["rope_theta"]
    assert config == train.ARCHITECTURE
    counted = sum(p.numel() for p in model.parameters())
    assert sum(n for _, n in model_card.parameter_rows(config)) == counted
    assert 3_000_000 <= counted <= 6_000_000


def test_generation_config_stops_at_both_ends(tokenizer):
    generation = json.loads((FOLDER / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [tokenizer.eos_token_id, tokenizer.pad_token_id]


@pytest.mark.parametrize(
    "text",
    [
        "Once upon a time, there was a girl named Lily.",
        "  two  spaces,\ttabs\n\nand lines \n",
        "从前有一个小女孩，她有一个红色的球。",
        "😀 🐙 👩‍👧",
        "e\u0301 is not é",
        "12 + 345 = 357",
        "\x00\x7f\u202e",
    ],
)
def test_tokenizer_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokenizer_special_tokens_and_digits(tokenizer):
    assert len(tokenizer) == 2048
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert tokenizer.tokenize("4096") == ["4", "0", "9", "6"]
    multi_digit = [token for token in tokenizer.get_vocab() if sum(c.isdigit() and c.isascii() for c in token) > 1]
    assert multi_digit == []


def test_chat_template_is_the_one_trained_on(tokenizer):
    for example in islice(data.examples(3, "heldout", "dialogue"), 20):
        messages = list(example.messages)
        assert tokenizer.apply_chat_template(messages, tokenize=False) == data.render_chat(messages)
        prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        assert prompt == data.render_chat(messages[:-1], add_generation_prompt=True)
        assert example.document().startswith(prompt)


@trained
def test_card_equals_its_data(config):
    text = (FOLDER / "README.md").read_text()
    assert text == model_card.card_of(FOLDER)
    assert f"{sum(n for _, n in model_card.parameter_rows(config)):,} parameters" in text


@trained
def test_recorded_scores_add_up():
    recorded = json.loads((FOLDER / "scores.json").read_text())
    run = json.loads((FOLDER / "training_run.json").read_text())
    for name, entry in recorded["scores"].items():
        if "right" in entry:
            assert 0 <= entry["right"] <= entry["of"], name
            assert entry["percent"] == round(100 * entry["right"] / entry["of"], 1), name
    parts = [recorded["scores"][f"passage_{about}"] for about in ("world", "story")]
    assert sum(p["right"] for p in parts) == recorded["scores"]["passage"]["right"]
    assert recorded["parameters"] == run["parameters"]
    assert run["tokens"] == run["steps"] * run["settings"]["batch_rows"] * run["settings"]["length"]


# ---------------------------------------------------------------- what it can do


@trained
def test_stories_keep_hero_and_thing_and_stop(model, tokenizer):
    items = score.held_out("tell", 8, score.names_both)
    answers = score.generate(model, tokenizer, [score.prompt_of(e) for e in items], score.STORY_LIMIT, 8)
    good = 0
    for e, (text, tokens, stopped) in zip(items, answers):
        marks = score.judge_story(text, tokens, stopped, e.messages[-2]["content"], e.facts["hero"], e.facts["noun"])
        good += all(marks.values())
    assert good >= 7, f"{good} of 8 held-out stories were right"


@trained
@pytest.mark.parametrize(("kind", "floor"), [("addition", 19), ("copy", 19), ("lookup", 19), ("passage", 18)])
def test_short_answers(model, tokenizer, kind, floor):
    items = score.held_out(kind, 20)
    answers = score.generate(model, tokenizer, [score.prompt_of(e) for e in items], 220 if kind == "copy" else 40, 20)
    right = sum(text == e.answer and stopped for e, (text, _, stopped) in zip(items, answers))
    assert right >= floor, f"{right} of 20 held-out {kind} items were right"


# ---------------------------------------------------------------- the corpus


def test_examples_depend_on_seed_and_split_only():
    def documents(seed, split):
        return [e.document() for e in islice(data.examples(seed, split), 50)]

    assert documents(1, "train") == documents(1, "train")
    assert documents(1, "train") != documents(2, "train")
    assert documents(1, "train") != documents(1, "heldout")
    with pytest.raises(ValueError, match="split"):
        next(data.examples(0, "test"))
    with pytest.raises(ValueError, match="kind"):
        next(data.examples(0, kind="poem"))


@pytest.mark.parametrize("kind", sorted(set(data.KINDS) - set(data.CLOSED_KINDS) - {"dialogue"}))
def test_held_out_contents_are_not_trained_on(kind):
    seen = {e.key for e in islice(data.examples(1, "train", kind), 2000)}
    unseen = {e.key for e in islice(data.examples(1, "heldout", kind), 500)}
    assert len(unseen) > 50
    assert not seen & unseen
    assert all(data.is_held_out(key) for key in unseen)


def test_no_placeholder_or_wrong_article_is_left():
    for example in islice(data.examples(11), 3000):
        if example.kind in ("story", "tell"):
            text = example.text or example.answer
            assert not re.search(r"[{}]", text), text
            assert not re.search(r"\ba [aeio][a-z]+\b|\ban [bcdfgjklmnpqrstvwxyz]", text), text
            assert re.search(r"[.!?]\"?$", text), text


def test_stories_hold_their_own_rules():
    """The judge finds no fault in the generator's stories: what it counts against the model is the model's."""
    for e in score.held_out("tell", 300, score.names_both):
        request = e.messages[-2]["content"]
        marks = score.judge_story(e.answer, 150, True, request, e.facts["hero"], e.facts["noun"])
        assert all(marks.values()), (marks, e.answer)


def test_story_judge_sees_drift():
    request, hero, noun = "Tell me a story about Mia and a red ball.", "Mia", "ball"
    good = (
        "Once there was a girl named Mia. Mia had a red ball. She went out to play with it. "
        "There she met Tom. Tom liked the red ball of Mia. Mia gave the ball to Tom."
    )
    assert all(score.judge_story(good, 120, True, request, hero, noun).values())

    def marks(text):
        return score.judge_story(text, 120, True, request, hero, noun)

    assert not marks(good.replace("named Mia", "named Lily"))["story_hero_kept"]
    assert not marks(good.replace("of Mia. Mia gave", "of hers. Lily gave"))["story_hero_kept"]
    assert not marks(good.replace("the red ball", "the blue ball"))["story_thing_kept"]
    assert not marks(good.replace("red ball of", "red kite of").replace("the ball", "the kite"))["story_thing_kept"]
    assert not marks(good.replace("gave the ball to Tom", "gave the ball to Ben"))["story_few_names"]


def test_tokens_of_stories_are_in_range(tokenizer):
    lengths = [len(tokenizer.encode(e.text)) for e in islice(data.examples(5, kind="story"), 200)]
    assert min(lengths) >= 80 and max(lengths) <= 250


def test_answers_follow_from_the_prompt():
    for e in islice(data.examples(2, "heldout", "copy"), 200):
        assert e.answer in e.messages[-2]["content"]
    for e in islice(data.examples(2, "heldout", "addition"), 200):
        a, b, total = map(int, re.findall(r"\d+", e.answer))
        assert a + b == total == int(e.facts["result"])
    for e in islice(data.examples(2, "heldout", "subtraction"), 200):
        a, b, difference = map(int, re.findall(r"\d+", e.answer))
        assert a - b == difference >= 0


# ---------------------------------------------------------------- the training


@pytest.fixture(scope="module")
def small_tokenizer():
    return train_tokenizer(documents=6000)


def test_only_stories_and_assistant_turns_are_learned(small_tokenizer):
    documents = [e.document() for e in islice(data.examples(4), 60)]
    for document in documents:
        ids = small_tokenizer.encode(document).ids
        marked = train.mark(torch.tensor(ids, dtype=torch.int16).numpy(), small_tokenizer)
        learned = small_tokenizer.decode(
            [i for i, m in zip(ids, marked.tolist()) if m < train.NO_LOSS], skip_special_tokens=False
        )
        if not document.startswith("<|im_start|>"):
            assert learned == document
            continue
        turns = re.findall(r"<\|im_start\|>assistant\n.*?<\|im_end\|>\n", document, flags=re.S)
        assert learned == "".join(turns) + "<|endoftext|>"


def test_packing_begins_each_row_with_a_document(small_tokenizer):
    rows = train.pack(data.examples(6), small_tokenizer, rows=6, row_length=256)
    ids = rows % train.NO_LOSS
    assert rows.shape == (6, 256) and ids.max() < 2048
    opening = {tuple(small_tokenizer.encode(e.document()).ids[:12]) for e in islice(data.examples(6), 300)}
    assert all(tuple(row[:12].tolist()) in opening for row in ids)


def test_loss_is_the_cross_entropy_of_transformers(small_tokenizer):
    """Ours, without a mask and with marked tokens, against transformers' own loss on the same labels."""
    model = train.build_model(0).eval()
    marked = torch.from_numpy(train.pack(data.examples(8), small_tokenizer, rows=2, row_length=128))
    with torch.no_grad():
        total, learned = train.loss_sum(model, marked)
        ids = (marked % train.NO_LOSS).long()
        labels = torch.where(marked >= train.NO_LOSS, -100, ids)
        expected = model(input_ids=ids, labels=labels).loss
    torch.testing.assert_close(total / learned, expected, rtol=1e-5, atol=1e-5)


def test_learning_rate_warms_up_and_anneals():
    rates = [train.learning_rate(step / 99, step, 1e-3, 10) for step in range(100)]
    assert rates[0] < rates[9] and max(rates) <= 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(1e-5)


def test_a_short_run_reduces_the_loss_and_loads(tmp_path):
    args = train.parse(
        ["--quick", "--steps", "20", "--length", "128", "--batch-rows", "4", "--long-from", "2", "--warmup-steps", "5",
         "--tokenizer-documents", "6000", "--eval-rows", "1", "--log-every", "4", "--device", "cpu",
         "--out", str(tmp_path)]
    )  # fmt: skip
    run = train.train(args)
    losses = [point["loss"] for point in run["loss_curve"]]
    assert losses[0] > 6.5 and losses[-1] < losses[0] - 1
    assert run["tokens"] == 20 * 4 * 128
    assert set(run["held_out_loss"]) == {"mix", *data.KINDS}
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_bad_arguments_are_refused(capsys):
    with pytest.raises(SystemExit):
        train.parse(["--out", "x", "--batch-rows", "0"])
    assert "--batch-rows must be positive" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train.parse(["--out", "x", "--length", "100", "--long-length", "150"])
    assert "--long-length" in capsys.readouterr().err
