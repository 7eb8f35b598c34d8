"""Token ids to text: exact, never half a character, bounded, and cut at stop strings."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_checkpoint
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nanovllm import LLM, SamplingParams
from nanovllm.config import EMBEDDED_MODEL
from nanovllm.engine.detokenizer import LONGEST_CHARACTER, WINDOW, Detokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps.",
    "大语言模型推理引擎：注意力、分页缓存、连续批处理。",
    "naïve café — 10 €, Ωμέγα, здравствуй, こんにちは, 안녕하세요",
    "emoji 😀😁 family 👨‍👩‍👧‍👦 flag 🏳️‍🌈 skin 👍🏽 end",
]
TEXTS = [
    *CORPUS,
    "你好，世界！",
    "👩🏽‍🚀🧑‍🤝‍🧑🇨🇭1️⃣",
    "mixed 混合 text 文本 with 😀 and é and\nnew\tlines   and spaces ",
    "𠀀𪚥 rare and \u202etricky\u200b marks \ufeff",
    "a real \ufffd replacement \ufffd\ufffd character",
]


@pytest.fixture(scope="module")
def tiny_tokenizer():
    """A byte-level BPE tokenizer of some 300 tokens: most characters outside ASCII take several."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")


@pytest.fixture(scope="module", params=["tiny", "embedded"])
def tokenizer(request, tiny_tokenizer):
    return tiny_tokenizer if request.param == "tiny" else AutoTokenizer.from_pretrained(EMBEDDED_MODEL)


def bytes_to_ids(tokenizer, content: bytes) -> list[int]:
    """One token a byte."""
    alphabet = {byte: char for char, byte in _byte_alphabet().items()}
    ids = tokenizer.convert_tokens_to_ids([alphabet[byte] for byte in content])
    assert None not in ids
    return ids


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's table of characters that stand for bytes: the printable ones for themselves, the rest from 256 on."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in kept}
    others = [byte for byte in range(256) if byte not in kept]
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


def run(tokenizer, ids: list[int], sizes=(1,), stop: tuple[str, ...] = ()) -> tuple[Detokenizer, list[str]]:
    """Feeds the ids in groups of the given sizes; returns the detokenizer and its text after each group."""
    detokenizer, texts, position, step = Detokenizer(tokenizer, stop), [], 0, 0
    while position < len(ids):
        size = sizes[step % len(sizes)]
        step += 1
        detokenizer.append(ids[position : position + size], last=position + size >= len(ids))
        position += size
        texts.append(detokenizer.text)
    return detokenizer, texts


def check_stream(tokenizer, ids: list[int], sizes=(1,)) -> None:
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    detokenizer, texts = run(tokenizer, ids, sizes)
    assert detokenizer.text == whole
    # No text is ever taken back, so no replacement character stands where a character later completes.
    for text in texts:
        assert whole.startswith(text)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("sizes", [(1,), (2,), (3, 1), (7,), (100,)])
def test_any_split_gives_the_whole_text(tokenizer, text, sizes):
    check_stream(tokenizer, tokenizer.encode(text), sizes)
    check_stream(tokenizer, bytes_to_ids(tokenizer, text.encode()), sizes)


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(st.sampled_from("ab 中文é😀👨‍👩👍🏽\u200d\ufffd\n𠀀"), max_size=60),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    by_bytes=st.booleans(),
)
def test_any_split_of_any_text(tiny_tokenizer, text, sizes, by_bytes):
    check_stream(
        tiny_tokenizer, bytes_to_ids(tiny_tokenizer, text.encode()) if by_bytes else tiny_tokenizer.encode(text), sizes
    )


@settings(max_examples=200, deadline=None)
@given(
    content=st.lists(
        st.one_of(
            st.sampled_from([b"a", "中".encode(), "😀".encode(), b"\xe4\xb8", b"\xf0\x9f", b"\x80", b"\xff"]),
            st.binary(),
        ),
        max_size=30,
    ),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
def test_any_split_of_any_bytes(tiny_tokenizer, content, sizes):
    check_stream(tiny_tokenizer, bytes_to_ids(tiny_tokenizer, b"".join(content)), sizes)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_split_of_any_ids(tiny_tokenizer, data):
    """Ids as a random model draws them: broken characters, special tokens anywhere."""
    ids = data.draw(st.lists(st.integers(0, len(tiny_tokenizer) - 1), max_size=80))
    check_stream(tiny_tokenizer, ids, data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))


def test_a_character_appears_with_its_last_byte(tiny_tokenizer):
    ids = bytes_to_ids(tiny_tokenizer, "é中😀".encode())
    _, texts = run(tiny_tokenizer, ids)
    assert texts == ["", "é", "é", "é", "é中", "é中", "é中", "é中", "é中😀"]


def test_an_unfinished_character_at_the_end_is_shown_as_such(tiny_tokenizer):
    ids = bytes_to_ids(tiny_tokenizer, b"ok \xe4\xb8")
    detokenizer = Detokenizer(tiny_tokenizer)
    detokenizer.append(ids)
    assert detokenizer.text == "ok "
    detokenizer.append([], last=True)
    assert detokenizer.text == "ok \ufffd" == tiny_tokenizer.decode(ids)


class CountingTokenizer:
    """Counts how many tokens are decoded."""

    def __init__(self, tokenizer):
        self.tokenizer, self.longest, self.total = tokenizer, 0, 0
        self.all_special_ids = tokenizer.all_special_ids

    def decode(self, ids, skip_special_tokens):
        self.longest, self.total = max(self.longest, len(ids)), self.total + len(ids)
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


STREAMS = {
    "continuation bytes": b"\x80" * 600,
    "lead bytes": b"\xe4" * 600,
    "never a character": b"\xf0\x9f" * 300,
    "random": random.Random(0).randbytes(600),
    "Chinese": ("中文" * 100).encode(),
    "every token ends amid a character": b"a" + ("中" * 199).encode(),
    "ASCII": b"a" * 600,
}


@pytest.mark.parametrize("name", STREAMS)
def test_work_and_delay_are_bounded_whatever_the_ids(name, tiny_tokenizer):
    ids = bytes_to_ids(tiny_tokenizer, STREAMS[name])
    counting = CountingTokenizer(tiny_tokenizer)
    detokenizer = Detokenizer(counting)
    for position, token_id in enumerate(ids, start=1):
        detokenizer.append([token_id])
        shown = len(detokenizer.text.encode())
        final = tiny_tokenizer.decode(ids[: max(0, position - LONGEST_CHARACTER)])
        assert shown >= len(final.encode()) - len("\ufffd".encode())
    assert counting.longest <= WINDOW + LONGEST_CHARACTER
    assert counting.total <= len(ids) * WINDOW
    detokenizer.append([], last=True)
    assert detokenizer.text == tiny_tokenizer.decode(ids)


def test_special_tokens_are_not_shown_and_do_not_disturb(tiny_tokenizer):
    end = tiny_tokenizer.eos_token_id
    ids = [
        end,
        *bytes_to_ids(tiny_tokenizer, "a中".encode()),
        end,
        *[end] * 40,
        *bytes_to_ids(tiny_tokenizer, b"b"),
        end,
    ]
    assert run(tiny_tokenizer, ids)[0].text == "a中b"
    # Also where they stand amid a character, as when a model goes on after its end.
    first, second, third = bytes_to_ids(tiny_tokenizer, "中".encode())
    ids = [first, *[end] * 40, second, *[end] * 40, third, end]
    assert run(tiny_tokenizer, ids)[0].text == tiny_tokenizer.decode(ids, skip_special_tokens=True) == "中"


# Stop strings


def released(tokenizer, text: str, stop: tuple[str, ...], sizes=(1,)) -> tuple[Detokenizer, list[str]]:
    """What a stream may show after each token."""
    detokenizer, shown = Detokenizer(tokenizer, stop), []
    ids = bytes_to_ids(tokenizer, text.encode())
    for token_id in ids:
        detokenizer.append([token_id])
        shown.append(detokenizer.text[: detokenizer.num_releasable])
        if detokenizer.stopped:
            break
    return detokenizer, shown


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("hello world", ("o w",), "hell"),
        ("hello world", ("hello",), ""),
        ("hello world", ("h",), ""),
        ("hello world", ("world", "lo"), "hel"),
        ("hello world", ("lo", "world"), "hel"),
        ("hello world", ("lo wor", "o w"), "hell"),  # the one that completes first
        ("hello world", ("xyz",), "hello world"),
        ("aaab", ("aab",), "a"),
        ("aXaXb", ("aXb",), "aX"),
        ("你好世界", ("世",), "你好"),
        ("你好世界", ("好世",), "你"),
        ("go 👍🏽 on", ("🏽",), "go 👍"),
        ("line\n\nnext", ("\n\n",), "line"),
        ("End", ("End",), ""),
    ],
)
def test_text_ends_before_the_stop_string(tiny_tokenizer, text, stop, expected):
    detokenizer, shown = released(tiny_tokenizer, text, stop)
    assert detokenizer.text == expected
    assert detokenizer.stopped == (expected != text)
    # A stream never shows a part of what is cut off, and never takes anything back.
    assert all(expected.startswith(piece) for piece in shown)
    assert all(after.startswith(before) for before, after in zip(shown, shown[1:], strict=False))


class Words:
    """A tokenizer of whole words."""

    all_special_ids = ()

    def decode(self, ids, skip_special_tokens):
        return "".join(["hello ", "world"][i] for i in ids)


@pytest.mark.parametrize("stop", [("lo", "ell"), ("ell", "lo")])
def test_of_two_stops_in_one_token_the_earlier_wins(stop):
    detokenizer = Detokenizer(Words(), stop)
    detokenizer.append([0, 1], last=True)
    assert detokenizer.text == "h" and detokenizer.stopped


@settings(max_examples=150, deadline=None)
@given(
    text=st.text("ab中", max_size=25),
    stop=st.lists(st.text("ab中", min_size=1, max_size=4), min_size=1, max_size=3),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3),
)
def test_stops_are_found_as_soon_as_they_are_complete(tiny_tokenizer, text, stop, sizes):
    detokenizer, _ = run(tiny_tokenizer, bytes_to_ids(tiny_tokenizer, text.encode()), sizes, stop=tuple(stop))
    ends = [(text.index(s) + len(s), text.index(s)) for s in stop if s in text]
    if not ends:
        assert detokenizer.text == text and not detokenizer.stopped
        return
    first_end = min(ends)[0]
    assert detokenizer.text == text[: min(start for end, start in ends if end == first_end)]
    assert detokenizer.stopped


def test_a_prefix_of_a_stop_is_held_back_and_released(tiny_tokenizer):
    _, shown = released(tiny_tokenizer, "a STOX STOP", (" STOP",))
    assert shown == ["a", "a", "a", "a", "a", "a STOX", "a STOX", "a STOX", "a STOX", "a STOX", "a STOX"]
    detokenizer, shown = released(tiny_tokenizer, "abab", ("abac", "bad"))
    assert shown == ["", "", "", "ab"]
    detokenizer.append([], last=True)
    assert detokenizer.text == "abab" and not detokenizer.stopped


@settings(max_examples=100, deadline=None)
@given(text=st.text("ab", max_size=20), stop=st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3))
def test_as_much_is_released_as_no_stop_can_take_back(tiny_tokenizer, text, stop):
    detokenizer = Detokenizer(tiny_tokenizer, tuple(stop))
    detokenizer.append(bytes_to_ids(tiny_tokenizer, text.encode()))
    if detokenizer.stopped:
        assert detokenizer.num_releasable == len(detokenizer.text)
        return
    held = max((n for s in stop for n in range(len(s)) if text.endswith(s[:n])), default=0)
    assert detokenizer.num_releasable == len(text) - held


def test_nothing_is_added_after_a_stop(tiny_tokenizer):
    detokenizer = Detokenizer(tiny_tokenizer, ("b",))
    detokenizer.append(bytes_to_ids(tiny_tokenizer, b"abcd"))
    detokenizer.append(bytes_to_ids(tiny_tokenizer, b"ef"), last=True)
    assert detokenizer.text == "a"


# Through the engine


def test_a_random_models_text_and_stream_are_the_decoded_ids(tiny_tokenizer, tmp_path):
    """Random weights and a high temperature: the worst ids there are."""
    make_checkpoint(tmp_path, vocab_size=len(tiny_tokenizer))
    tiny_tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == "<|end|>"
    with LLM(tmp_path, device="cpu") as llm:
        for seed in range(4):
            params = SamplingParams(temperature=5.0, max_tokens=60, seed=seed, ignore_eos=True)
            (output,) = llm.generate("The 中文", params, use_tqdm=False)
            whole = tiny_tokenizer.decode(output["token_ids"], skip_special_tokens=True)
            assert output["text"] == whole
            pieces = list(llm.stream("The 中文", params))
            assert "".join(piece["text"] for piece in pieces) == whole
            assert sum((piece["token_ids"] for piece in pieces), []) == output["token_ids"]
            stop = whole[20:23]
            stopped = llm.generate("The 中文", SamplingParams(**_with(params, stop=stop)), use_tqdm=False)[0]
            assert stopped["text"] == whole[: whole.index(stop)] and stopped["finish_reason"] == "stop"
            streamed = llm.stream("The 中文", SamplingParams(**_with(params, stop=stop)))
            assert "".join(piece["text"] for piece in streamed) == stopped["text"]


def _with(params: SamplingParams, **changes):
    kept = ("temperature", "max_tokens", "seed", "ignore_eos")
    return {name: getattr(params, name) for name in kept} | changes
