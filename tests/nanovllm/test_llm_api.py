"""What users call: generate, stream, chat, abort, the progress bar, metrics, and what is left after an interruption."""

from __future__ import annotations

import gc
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from ascii_tokenizer import CHAT_TEMPLATE, add_tokenizer
from serving import check_idle, make_llm, tokens
from tiny import make_checkpoint, random_prompts
from transformers import AutoTokenizer

from nanovllm import LLM, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=16)
TEXTS = ["Once upon a time", "a", "The number 42 is", "x = [1, 2, 3]\n", "You: hello!"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A random model that writes ASCII, and now and then bytes of a longer character."""
    path = tmp_path_factory.mktemp("tiny_with_tokenizer")
    return make_checkpoint(path, vocab_size=add_tokenizer(path), tie_word_embeddings=False)


@pytest.fixture(scope="module")
def shared_llm(folder):
    with make_llm(folder) as llm:
        yield llm


@pytest.fixture
def llm(shared_llm):
    yield shared_llm
    check_idle(shared_llm)


# generate


def test_one_prompt_or_several_strings_or_ids(llm):
    ids = [llm.tokenizer.encode(text) for text in TEXTS]
    outputs = llm.generate(TEXTS, GREEDY, use_tqdm=False)
    assert len(outputs) == len(TEXTS)
    assert tokens(llm.generate(ids, GREEDY, use_tqdm=False)) == tokens(outputs)
    assert tokens(llm.generate([tuple(i) for i in ids], GREEDY, use_tqdm=False)) == tokens(outputs)
    assert tokens(llm.generate([TEXTS[0], *ids[1:]], GREEDY, use_tqdm=False)) == tokens(outputs)
    assert tokens(llm.generate(TEXTS[0], GREEDY, use_tqdm=False)) == tokens(outputs[:1])
    assert tokens(llm.generate(ids[0], GREEDY, use_tqdm=False)) == tokens(outputs[:1])
    assert llm.generate([], GREEDY) == []


def test_text_is_what_the_tokenizer_makes_of_the_tokens(llm, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for output in llm.generate(TEXTS, SamplingParams(seed=1, max_tokens=60), use_tqdm=False):
        assert output["text"] == tokenizer.decode(output["token_ids"], skip_special_tokens=True)
        assert len(output["token_ids"]) == 60 and output["finish_reason"] == "length" and output["logprobs"] is None


def test_text_that_nobody_watches_is_decoded_once(llm, monkeypatch):
    calls = []
    decode = type(llm.tokenizer).decode
    monkeypatch.setattr(
        llm.tokenizer, "decode", lambda ids, **kw: calls.append(len(ids)) or decode(llm.tokenizer, ids, **kw)
    )
    llm.generate([[5, 6], [7]], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True), use_tqdm=False)
    assert calls == [12, 12]


def test_results_are_in_the_order_of_the_prompts(llm):
    """Though they finish in another one, and each has its own parameters."""
    params = [SamplingParams(temperature=0, max_tokens=n) for n in (30, 1, 17, 5, 9)]
    outputs = llm.generate(TEXTS, params, use_tqdm=False)
    assert [len(output["token_ids"]) for output in outputs] == [30, 1, 17, 5, 9]
    for text, param, output in zip(TEXTS, params, outputs, strict=True):
        assert llm.generate(text, param, use_tqdm=False)[0]["token_ids"] == output["token_ids"]


def test_without_parameters_the_defaults_are_taken(llm):
    (output,) = llm.generate("abc", use_tqdm=False)
    assert len(output["token_ids"]) == SamplingParams().max_tokens == 64


def test_a_folder_without_a_tokenizer_serves_token_ids(tmp_path):
    with make_llm(make_checkpoint(tmp_path)) as llm:
        assert llm.tokenizer is None
        outputs = llm.generate(random_prompts(3, 1, 20), GREEDY, use_tqdm=False)
        assert [output["text"] for output in outputs] == [None] * 3
        pieces = list(llm.stream([1, 2, 3], GREEDY))
        assert {piece["text"] for piece in pieces} == {None}
        assert (
            sum((piece["token_ids"] for piece in pieces), [])
            == tokens(llm.generate([1, 2, 3], GREEDY, use_tqdm=False))[0]
        )
        check_idle(llm)


def test_n(llm):
    params = SamplingParams(seed=5, max_tokens=12, n=4, logprobs=1)
    one, two = llm.generate(TEXTS[:2], params, use_tqdm=False)
    assert len(one["outputs"]) == len(two["outputs"]) == 4
    for output in (one, two):
        assert {key: value for key, value in output.items() if key != "outputs"} == output["outputs"][0]
        assert len({tuple(t) for t in tokens(output["outputs"])}) == 4
        for completion in output["outputs"]:
            assert completion["text"] == llm.tokenizer.decode(completion["token_ids"], skip_special_tokens=True)
            assert len(completion["logprobs"]) == 12
    # The first is the one that n=1 gives, and greedy ones are equal.
    alone = llm.generate(TEXTS[0], SamplingParams(seed=5, max_tokens=12), use_tqdm=False)[0]
    assert alone["token_ids"] == one["token_ids"] and "outputs" not in alone
    greedy = llm.generate(TEXTS[0], SamplingParams(temperature=0, max_tokens=5, n=3), use_tqdm=False)[0]
    assert len({tuple(t) for t in tokens(greedy["outputs"])}) == 1


def test_n_with_different_lengths_finishes_when_the_last_does(llm):
    probe = llm.generate("ab", SamplingParams(seed=3, max_tokens=30, n=4), use_tqdm=False)[0]["outputs"]
    stop = probe[2]["token_ids"][4]
    params = SamplingParams(seed=3, max_tokens=30, n=4, stop_token_ids=[stop])
    stopped = llm.generate("ab", params, use_tqdm=False)[0]["outputs"]
    for full, cut in zip(tokens(probe), tokens(stopped), strict=True):
        assert cut == (full[: full.index(stop) + 1] if stop in full else full)
    assert len({len(cut) for cut in tokens(stopped)}) > 1


def test_stop_strings_end_one_request_and_not_its_mates(llm):
    full = llm.generate(TEXTS, SamplingParams(temperature=0, max_tokens=30), use_tqdm=False)
    stop = full[0]["text"][5:8]
    outputs = llm.generate(TEXTS, SamplingParams(temperature=0, max_tokens=30, stop=stop), use_tqdm=False)
    for whole, output in zip(full, outputs, strict=True):
        assert output["text"] == whole["text"].partition(stop)[0]
        assert output["finish_reason"] == ("stop" if stop in whole["text"] else "length")
        assert whole["token_ids"][: len(output["token_ids"])] == output["token_ids"]
    assert outputs[0]["finish_reason"] == "stop"


def test_a_stop_string_in_the_last_token_is_a_stop(llm):
    full = llm.generate("a", GREEDY, use_tqdm=False)[0]["text"]
    stop = next(full[-n:] for n in range(1, len(full)) if full.index(full[-n:]) == len(full) - n)
    (output,) = llm.generate("a", SamplingParams(temperature=0, max_tokens=16, stop=[stop]), use_tqdm=False)
    assert (output["text"], output["finish_reason"]) == (full[: -len(stop)], "stop")


def test_the_checkpoint_s_own_end_token(tmp_path):
    """generation_config's ids stop; an end that is also the last allowed token is a stop; ignore_eos goes on."""
    make_checkpoint(tmp_path)
    params = SamplingParams(seed=1, max_tokens=16)
    with make_llm(tmp_path) as llm:
        (full,) = tokens(llm.generate([5, 6, 7], params, use_tqdm=False))
    end = next(i for i in range(2, 16) if full[i] not in full[:i]) + 1
    unused = next(token for token in range(199) if token not in full)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [full[end - 1], unused]}))
    with make_llm(tmp_path) as llm:
        for max_tokens in (16, end):
            (output,) = llm.generate([5, 6, 7], SamplingParams(seed=1, max_tokens=max_tokens), use_tqdm=False)
            assert (output["token_ids"], output["finish_reason"]) == (full[:end], "stop")
        (output,) = llm.generate([5, 6, 7], replace(params, ignore_eos=True), use_tqdm=False)
        assert (output["token_ids"], output["finish_reason"]) == (full, "length")
        check_idle(llm)


# Progress bar and metrics


def test_the_progress_bar_shows_both_rates(llm, capsys):
    llm.generate(TEXTS, GREEDY)
    shown = capsys.readouterr().err
    assert re.search(r"prefill=\d+ tok/s", shown) and re.search(r"decode=\d+ tok/s", shown)
    assert f"{len(TEXTS)}/{len(TEXTS)}" in shown
    llm.generate(TEXTS, GREEDY, use_tqdm=False)
    assert capsys.readouterr().err == ""


def test_steps_say_how_many_tokens_they_computed(llm):
    ids = [llm.add_request([1] * 10, SamplingParams(temperature=0, max_tokens=4)), llm.add_request([2] * 7, GREEDY)]
    steps = []
    while llm.has_unfinished:
        steps.append(llm.step())
    assert [(s.num_prefill_tokens, s.num_decode_tokens) for s in steps] == [(17, 0)] + [(0, 2)] * 3 + [(0, 1)] * 12
    assert [[r.request_id for r in s.finished] for s in steps if s.finished] == [[ids[0]], [ids[1]]]
    assert all(step.seconds > 0 for step in steps)
    for request_id in ids:
        llm.take_output(request_id)
    empty = llm.step()
    assert (empty.num_prefill_tokens, empty.num_decode_tokens, empty.finished) == (0, 0, [])


def test_metrics(llm):
    prompt = llm.tokenizer.encode("What is the time? " * 3)
    llm.generate([prompt], GREEDY, use_tqdm=False)
    (again,) = llm.generate([prompt], GREEDY, use_tqdm=False)
    metrics = again["metrics"]
    assert metrics["prefix_cached_tokens"] == (len(prompt) - 1) // 16 * 16 == 48
    assert 0 <= metrics["queued"] <= metrics["first_token"] <= metrics["total"]
    assert math.isclose(metrics["per_token"], (metrics["total"] - metrics["first_token"]) / 15, rel_tol=1e-6)
    assert metrics["preemptions"] == 0
    (one,) = llm.generate([prompt], SamplingParams(max_tokens=1), use_tqdm=False)
    assert one["metrics"]["per_token"] is None


# stream


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(seed=2, max_tokens=80), SamplingParams(seed=3, stop="e")])
def test_a_stream_equals_generate(llm, params):
    (output,) = llm.generate(TEXTS[0], params, use_tqdm=False)
    pieces = list(llm.stream(TEXTS[0], params))
    assert "".join(piece["text"] for piece in pieces) == output["text"]
    assert sum((piece["token_ids"] for piece in pieces), []) == output["token_ids"]
    assert [piece["finish_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + [output["finish_reason"]]
    assert all(len(piece["token_ids"]) == 1 for piece in pieces)


def test_a_stream_never_shows_what_a_stop_string_takes_back(llm):
    full = llm.generate("a", SamplingParams(temperature=0, max_tokens=40), use_tqdm=False)[0]["text"]
    stop = full[10:16]
    shown = ""
    for piece in llm.stream("a", SamplingParams(temperature=0, max_tokens=40, stop=[stop])):
        shown += piece["text"]
        assert full.partition(stop)[0].startswith(shown)
    assert shown == full.partition(stop)[0]


def test_an_abandoned_stream_frees_its_blocks(llm):
    stream = llm.stream(TEXTS[0], GREEDY)
    next(stream)
    assert llm.scheduler.block_manager.num_free_blocks < llm.scheduler.block_manager.num_blocks
    stream.close()
    check_idle(llm)
    for _ in llm.stream(TEXTS[0], GREEDY):
        break
    gc.collect()
    check_idle(llm)


def test_a_stream_that_was_never_read_leaves_nothing(llm):
    """Closing a generator that was not started runs none of its code."""
    stream = llm.stream(TEXTS[0], GREEDY)
    assert llm.has_unfinished  # it was queued at once
    stream.close()
    check_idle(llm)
    stream = llm.stream(TEXTS[0], GREEDY)
    del stream
    gc.collect()
    check_idle(llm)


def test_generate_while_streams_are_open(llm):
    expected = llm.generate(TEXTS, GREEDY, use_tqdm=False)
    streams = [llm.stream(text, GREEDY) for text in TEXTS[:2]]
    pieces = [[next(stream)] for stream in streams]
    assert tokens(llm.generate(TEXTS[2:], GREEDY, use_tqdm=False)) == tokens(expected[2:])
    for stream, mine, output in zip(streams, pieces, expected[:2], strict=True):
        mine += stream
        assert sum((piece["token_ids"] for piece in mine), []) == output["token_ids"]
        assert "".join(piece["text"] for piece in mine) == output["text"]


def test_interleaved_streams(llm):
    expected = llm.generate(TEXTS, GREEDY, use_tqdm=False)
    streams = [llm.stream(text, GREEDY) for text in TEXTS]
    texts = [""] * len(TEXTS)
    for pieces in zip(*streams, strict=True):
        texts = [text + piece["text"] for text, piece in zip(texts, pieces, strict=True)]
    assert texts == [output["text"] for output in expected]


# Interruption, errors, abort


class Boom(Exception):
    pass


def fail_at(llm: LLM, monkeypatch: pytest.MonkeyPatch, call: int, error: type[BaseException]) -> None:
    """The model's `call`-th step from now on raises; the ones after it work."""
    execute, calls = llm.model_runner.execute, iter(range(10**9))

    def failing(batch):
        if next(calls) == call:
            raise error("injected")
        return execute(batch)

    monkeypatch.setattr(llm.model_runner, "execute", failing)


@pytest.mark.parametrize("call", [0, 1, 7])
@pytest.mark.parametrize("error", [KeyboardInterrupt, Boom])
def test_an_interrupted_generate_leaves_the_engine_usable_and_its_blocks_free(llm, monkeypatch, error, call):
    expected = tokens(llm.generate(TEXTS, GREEDY, use_tqdm=False))
    fail_at(llm, monkeypatch, call, error)
    with pytest.raises(error, match="injected"):
        llm.generate(TEXTS, GREEDY, use_tqdm=False)
    check_idle(llm)
    assert tokens(llm.generate(TEXTS, GREEDY, use_tqdm=False)) == expected


def test_an_interrupted_generate_with_more_prompts_than_seats(folder, monkeypatch):
    """The ones that were still waiting go as well."""
    with make_llm(folder, max_num_seqs=2) as llm:
        fail_at(llm, monkeypatch, 3, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(TEXTS, GREEDY, use_tqdm=False)
        check_idle(llm)
        assert len(llm.generate(TEXTS, GREEDY, use_tqdm=False)) == 5


def test_an_error_in_a_step_ends_only_that_batch(folder, monkeypatch):
    with make_llm(folder, max_num_seqs=2) as llm:
        expected = tokens(llm.generate(TEXTS, GREEDY, use_tqdm=False))
        ids = [llm.add_request(text, GREEDY) for text in TEXTS]
        fail_at(llm, monkeypatch, 4, Boom)
        errors = 0
        while llm.has_unfinished:
            try:
                llm.step()
            except Boom:
                errors += 1
        outputs = [llm.take_output(request_id) for request_id in ids]
        assert errors == 1
        assert [output["finish_reason"] for output in outputs] == ["error", "error", "length", "length", "length"]
        assert tokens(outputs[2:]) == expected[2:]
        assert tokens(outputs[:2]) == [t[:4] for t in expected[:2]]  # what they had is kept
        check_idle(llm)


def test_an_error_in_a_stream_ends_it(llm, monkeypatch):
    stream = llm.stream(TEXTS[0], GREEDY)
    other = llm.stream(TEXTS[1], GREEDY)
    next(stream)
    fail_at(llm, monkeypatch, 2, Boom)
    with pytest.raises(Boom):
        list(stream)
    with pytest.raises(StopIteration):
        next(stream)
    pieces = list(other)  # it was in the same batch
    assert pieces[-1]["finish_reason"] == "error"


def test_abort(llm):
    waiting = [llm.add_request(text, SamplingParams(temperature=0, max_tokens=16, n=2)) for text in TEXTS]
    llm.abort(waiting[0])  # not started
    for _ in range(3):
        llm.step()
    llm.abort(waiting[1])
    llm.abort(waiting[1])  # twice
    llm.abort(10**6)  # unknown
    while llm.has_unfinished:
        llm.step()
    llm.abort(waiting[2])  # finished
    outputs = [llm.take_output(request_id) for request_id in waiting]
    assert [output["finish_reason"] for output in outputs] == ["abort", "abort", "length", "length", "length"]
    assert [len(output["token_ids"]) for output in outputs] == [0, 3, 16, 16, 16]
    assert [len(completion["token_ids"]) for completion in outputs[1]["outputs"]] == [3, 3]
    assert outputs[0]["text"] == "" and outputs[0]["metrics"]["first_token"] is None
    with pytest.raises(KeyError):
        llm.get_request(waiting[0])


def test_an_aborted_stream_says_so(llm):
    stream = llm.stream(TEXTS[0], GREEDY)
    next(stream)
    for request_id in list(llm._requests):
        llm.abort(request_id)
    assert [piece["finish_reason"] for piece in stream] == ["abort"]


# chat


def test_chat_is_generate_after_the_template(llm, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    conversations = [
        [{"role": "user", "content": "Hello!"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 2?"}],
    ]
    prompts = [tokenizer.apply_chat_template(c, add_generation_prompt=True)["input_ids"] for c in conversations]
    expected = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert tokens(llm.chat(conversations, GREEDY, use_tqdm=False)) == tokens(expected)
    one = llm.chat(conversations[0], GREEDY, use_tqdm=False)
    assert one["token_ids"] == expected[0]["token_ids"] and one["text"] == expected[0]["text"]
    assert llm.tokenizer.decode(llm.apply_chat_template(conversations[0], shout="!!")).endswith("assistant\n!!")


# Life and death


def test_a_with_block_releases_the_model(folder):
    with make_llm(folder) as llm:
        request_id = llm.add_request("abc", GREEDY)
        llm.step()
        stream = llm.stream("abc", GREEDY)
        next(stream)
    assert not hasattr(llm.model_runner, "model")
    assert llm.take_output(request_id)["finish_reason"] == "abort"
    assert [piece["finish_reason"] for piece in stream] == ["abort"]
    check_idle(llm)


def test_an_engine_can_be_closed_twice(folder):
    with make_llm(folder) as llm:
        llm.close()
    llm.close()


def test_a_closed_engine_says_so(folder):
    llm = make_llm(folder)
    llm.close()
    for call in (lambda: llm.generate("abc"), lambda: llm.stream("abc"), lambda: llm.add_request([1])):
        with pytest.raises(RuntimeError, match="closed"):
            call()
    assert not llm.has_unfinished


def test_two_engines_side_by_side(folder, llm):
    expected = tokens(llm.generate(TEXTS, GREEDY, use_tqdm=False))
    with make_llm(folder, kvcache_block_size=32) as other:
        mine, theirs = llm.stream(TEXTS[0], GREEDY), other.stream(TEXTS[0], GREEDY)
        for one, two in zip(mine, theirs, strict=True):
            assert one == two
        assert tokens(other.generate(TEXTS, GREEDY, use_tqdm=False)) == expected
