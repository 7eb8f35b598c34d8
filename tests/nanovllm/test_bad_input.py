"""Whatever is handed to the engine, the error names it and says what is allowed, and the engine works afterwards."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from ascii_tokenizer import add_tokenizer
from serving import check_idle, make_llm, tokens
from tiny import make_checkpoint

from nanovllm import LLM, SamplingParams
from nanovllm.config import EngineConfig

GREEDY = SamplingParams(temperature=0, max_tokens=6)
GOOD = ["Once upon", "a time"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tiny_with_tokenizer")
    return make_checkpoint(path, vocab_size=add_tokenizer(path), tie_word_embeddings=False)


@pytest.fixture(scope="module")
def shared_llm(folder):
    with make_llm(folder, max_model_len=64) as llm:
        yield llm, tokens(llm.generate(GOOD, GREEDY, use_tqdm=False))


@pytest.fixture
def llm(shared_llm, monkeypatch):
    """After the test: nothing was computed, nothing is left, and the next prompts give what they always gave."""
    llm, expected = shared_llm
    computed = []
    execute = llm.model_runner.execute
    with monkeypatch.context() as patch:
        patch.setattr(llm.model_runner, "execute", lambda batch: computed.append(batch) or execute(batch))
        yield llm
    assert not computed
    check_idle(llm)
    assert tokens(llm.generate(GOOD, GREEDY, use_tqdm=False)) == expected


VOCAB = 105  # of the ASCII tokenizer
BAD_PROMPTS = {
    "empty string": ("", ValueError, "prompt must not be empty"),
    "empty list": ([], ValueError, "prompt must not be empty"),
    "too long": ([1] * 64, ValueError, r"64 tokens, but at most 63 fit.*max_model_len is 64"),
    "too long a text": ("a" * 100, ValueError, r"100 tokens, but at most 63 fit"),
    "id out of range": ([1, VOCAB], ValueError, f"token id of the prompt must be 0 to {VOCAB - 1}, got {VOCAB}"),
    "negative id": ([1, -1], ValueError, f"token id of the prompt must be 0 to {VOCAB - 1}, got -1"),
    "bool": ([1, True], TypeError, r"token id of the prompt must be an int, got True \(bool\)"),
    "first a bool": ([False, 1], TypeError, r"token id of the prompt must be an int, got False \(bool\)"),
    "float": ([1, 2.0], TypeError, r"token id of the prompt must be an int, got 2.0 \(float\)"),
    "string among ids": ([1, "a"], TypeError, r"token id of the prompt must be an int, got 'a' \(str\)"),
    "None among ids": ([1, None], TypeError, "token id of the prompt must be an int, got None"),
    "nested": ([1, [2]], TypeError, r"token id of the prompt must be an int, got \[2\]"),
}


@pytest.mark.parametrize("case", BAD_PROMPTS)
def test_bad_prompt(llm, case):
    prompt, error, message = BAD_PROMPTS[case]
    assert llm.model_config.vocab_size == VOCAB
    with pytest.raises(error, match=message):
        llm.add_request(prompt, GREEDY)
    with pytest.raises(error, match=message):
        llm.stream(prompt, GREEDY)
    with pytest.raises(error, match=r"prompts\[0\]: .*" + message):
        llm.generate([prompt], GREEDY, use_tqdm=False)
    if prompt != []:  # an empty list is no prompts
        with pytest.raises(error, match=message):
            llm.generate(prompt, GREEDY, use_tqdm=False)


@pytest.mark.parametrize("case", BAD_PROMPTS)
def test_one_bad_prompt_among_good_ones_computes_nothing(llm, case):
    prompt, error, message = BAD_PROMPTS[case]
    with pytest.raises(error, match=r"prompts\[2\]: .*" + message):
        llm.generate([*GOOD, prompt, "more"], GREEDY, use_tqdm=False)


@pytest.mark.parametrize("prompt", [None, 3, 1.5, b"abc", {"a": 1}, object()])
def test_a_prompt_of_another_type(llm, prompt):
    with pytest.raises(TypeError, match="prompt must be a string or a list of token ids, got " + type(prompt).__name__):
        llm.add_request(prompt)
    with pytest.raises(TypeError, match="prompt must be a string or a list of token ids"):
        llm.generate(["good", prompt], use_tqdm=False)
    with pytest.raises(TypeError, match="prompts must be a string, a list of token ids, or a list of those, got "):
        llm.generate(prompt, use_tqdm=False)


def test_an_array_is_no_list_of_token_ids(llm):
    with pytest.raises(TypeError, match="prompts must be .* got ndarray"):
        llm.generate(np.array([1, 2]), use_tqdm=False)
    with pytest.raises(TypeError, match="must be an int, got .*int64"):
        llm.generate([list(np.array([1, 2]))], use_tqdm=False)


@pytest.mark.parametrize("params", [{"temperature": 0}, "greedy", 0, SamplingParams])
def test_sampling_params_of_another_type(llm, params):
    with pytest.raises(TypeError, match="sampling_params must be a SamplingParams"):
        llm.add_request("abc", params)
    with pytest.raises(TypeError, match="sampling_params must be a SamplingParams or a list of them"):
        llm.generate("abc", params, use_tqdm=False)
    with pytest.raises(TypeError, match="sampling_params must be a SamplingParams or a list of them"):
        llm.generate(["abc", "abc"], [GREEDY, params], use_tqdm=False)
    with pytest.raises(TypeError, match="sampling_params must be a SamplingParams"):
        llm.stream("abc", params)


@pytest.mark.parametrize("num", [0, 1, 3])
def test_a_list_of_sampling_params_of_another_length(llm, num):
    with pytest.raises(ValueError, match=f"sampling_params has {num} entries for 2 prompts"):
        llm.generate(GOOD, [GREEDY] * num, use_tqdm=False)


def test_max_tokens_0_and_unknown_sampling_arguments(llm):
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        llm.generate(GOOD, SamplingParams(max_tokens=0), use_tqdm=False)
    with pytest.raises(TypeError, match="no argument 'max_new_tokens'. Did you mean 'max_tokens'"):
        llm.generate(GOOD, SamplingParams(max_new_tokens=5), use_tqdm=False)


def test_n_in_a_stream(llm):
    with pytest.raises(ValueError, match="n must be 1 in a stream, got 2"):
        llm.stream("abc", SamplingParams(n=2))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hello", "messages must be a list of at least one"),
        ([[]], "messages must be a list of at least one"),
        ([{"content": "x"}], "each message must have the keys 'role' and 'content'"),
        ([{"role": "user"}], "each message must have the keys 'role' and 'content'"),
        ([[{"role": "user", "content": "x"}], [{"role": "user"}]], "each message must have the keys"),
        ([["hello"]], "each message must have the keys 'role' and 'content', got 'hello'"),
        ([{"role": "user", "content": None}], "role and content of each message must be strings"),
        ([{"role": 3, "content": "x"}], "role and content of each message must be strings"),
    ],
)
def test_bad_messages(llm, messages, message):
    with pytest.raises((TypeError, ValueError), match=message):
        llm.chat(messages, GREEDY, use_tqdm=False)


def test_a_conversation_that_is_too_long(llm):
    with pytest.raises(ValueError, match="at most 63 fit"):
        llm.chat([{"role": "user", "content": "a" * 60}], GREEDY, use_tqdm=False)


def test_a_prompt_that_can_never_fit_the_pool(folder):
    with make_llm(folder, num_kvcache_blocks=2) as llm:
        good = llm.generate([[1] * 31], GREEDY, use_tqdm=False)
        assert len(good[0]["token_ids"]) == 1
        with pytest.raises(ValueError, match=r"at most 31 fit.*KV cache holds 32 tokens \(2 blocks of 16\)"):
            llm.generate([[1] * 32], GREEDY, use_tqdm=False)
        check_idle(llm)
        assert tokens(llm.generate([[1] * 31], GREEDY, use_tqdm=False)) == tokens(good)


def test_without_a_tokenizer(tmp_path):
    with make_llm(make_checkpoint(tmp_path)) as llm:
        for call in (lambda: llm.generate("abc"), lambda: llm.stream("abc"), lambda: llm.add_request("abc")):
            with pytest.raises(ValueError, match="prompt is a string.*has no tokenizer: pass token ids"):
                call()
        stop = SamplingParams(stop="x", max_tokens=3)
        for call in (lambda: llm.generate([1, 2], stop), lambda: llm.generate([[1], [2]], [GREEDY, stop])):
            with pytest.raises(ValueError, match="stop strings need a tokenizer.*use stop_token_ids"):
                call()
        with pytest.raises(ValueError, match="has no chat template; use generate"):
            llm.chat([{"role": "user", "content": "x"}])
        check_idle(llm)
        assert len(llm.generate([1, 2], GREEDY, use_tqdm=False)[0]["token_ids"]) == 6


# Making an engine


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(EngineConfig)])
def test_every_argument_of_llm_is_checked_and_named(folder, name):
    arguments = {"model": folder, **{name: object()}}
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b.* must be "):
        LLM(**arguments)


def test_an_unknown_argument_of_llm(folder):
    with pytest.raises(TypeError, match="LLM has no argument 'max_num_seq'. Did you mean 'max_num_seqs'.*Allowed: "):
        LLM(folder, max_num_seq=3)
    with pytest.raises(TypeError, match="LLM has no argument 'gpu_utilization'"):
        LLM(folder, gpu_utilization=0.5)


@pytest.mark.parametrize("model", ["/no/such/folder", "no_such_folder", "./a/b", "a/b/c", "~/no_such_folder"])
def test_a_model_that_is_no_folder_and_no_hub_name(model, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("the hub was asked"))
    with pytest.raises(FileNotFoundError, match=r"model=.*is not a folder.*'Qwen/Qwen3-0.6B'"):
        LLM(model)


def test_a_model_that_is_a_file(folder):
    with pytest.raises(FileNotFoundError, match="is a file; it must be the folder of a checkpoint"):
        LLM(folder / "config.json")


def test_an_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json does not exist"):
        LLM(tmp_path)


def test_a_hub_name_without_a_network_fails_fast(monkeypatch):
    asked = []

    def no_network(name: str, **kwargs: object) -> str:
        asked.append(name)
        raise ConnectionError("Network is unreachable\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError, match="'Qwen/Qwen3-0.6B'.*ConnectionError: Network is unreachable$"):
        LLM("Qwen/Qwen3-0.6B")
    assert time.perf_counter() - start < 2
    assert asked == ["Qwen/Qwen3-0.6B"]


def test_a_hub_name_with_a_network_loads_what_the_hub_gives(folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **kwargs: str(folder))
    with make_llm("someone/tiny") as llm:
        assert len(llm.generate("abc", GREEDY, use_tqdm=False)[0]["token_ids"]) == 6


def test_settings_that_do_not_fit_the_machine(folder, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda', but PyTorch sees no CUDA device; allowed here: 'cpu', 'auto'"):
        LLM(folder, device="cuda")
    with pytest.raises(ValueError, match="cpu_kvcache_gib=1e-09 leaves no room for a single KV-cache block.*raise it"):
        make_llm(folder, cpu_kvcache_gib=1e-9)
