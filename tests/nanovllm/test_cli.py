"""The command line, run in this process on the embedded model."""

from __future__ import annotations

import builtins
import subprocess
import sys

import pytest

from nanovllm import LLM, SamplingParams
from nanovllm.cli import main


def greedy(prompt: str | list[int], max_tokens: int) -> str:
    with LLM() as llm:
        return llm.generate([prompt], SamplingParams(temperature=0, max_tokens=max_tokens), use_tqdm=False)[0]["text"]


def test_generate_one_prompt_prints_prompt_and_text(capsys):
    assert main(["generate", "Once upon a time", "--temperature", "0", "--max-tokens", "12"]) == 0
    assert capsys.readouterr().out == "Once upon a time" + greedy("Once upon a time", 12) + "\n"


def test_generate_several_prompts_in_order(capsys):
    assert main(["generate", "Once upon a time", "One day", "--temperature", "0", "--max-tokens", "5"]) == 0
    out = capsys.readouterr().out
    assert out.index("--- Once upon a time") < out.index("--- One day")
    assert "One day" + greedy("One day", 5) in out


def test_chat_keeps_the_conversation(capsys, monkeypatch):
    lines = iter(["My name is Lily.", "What is my name?", ""])
    monkeypatch.setattr(builtins, "input", lambda prompt: next(lines))
    assert main(["chat", "--temperature", "0"]) == 0
    assert "Lily" in capsys.readouterr().out.splitlines()[-1]


def test_chat_ends_at_the_end_of_the_input(monkeypatch):
    def end(prompt):
        raise EOFError

    monkeypatch.setattr(builtins, "input", end)
    assert main(["chat"]) == 0


def test_bench_reports_both_rounds(capsys):
    assert main(["bench", "--num-prompts", "3", "--input-tokens", "2", "9", "--output-tokens", "2", "5"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("3 requests, ")
    assert "first" in out
    assert "warm" in out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["generate", "x", "--max-tokens", "0"], "max_tokens"),
        (["generate", "x", "--temperature", "-1"], "temperature"),
        (["generate", ""], "prompt"),
        (["generate", "x", "--model", "./nowhere"], "nowhere"),
        (["bench", "--input-tokens", "9", "2"], "--input-tokens"),
    ],
)
def test_bad_arguments_are_named_in_one_line(capsys, arguments, named):
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert named in error


def test_help_lists_the_commands():
    result = subprocess.run([sys.executable, "-m", "nanovllm", "--help"], capture_output=True, text=True, check=True)
    for command in ("generate", "chat", "bench"):
        assert command in result.stdout
