"""Finding a model's folder and its tokenizer."""

from __future__ import annotations

import huggingface_hub
import pytest
from huggingface_hub.errors import HFValidationError

from nanovllm.config import EMBEDDED_MODEL
from nanovllm.utils.checkpoint import load_tokenizer, resolve_model


def test_a_folder_is_taken_as_it_is(tmp_path, monkeypatch):
    assert resolve_model(tmp_path) == resolve_model(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert resolve_model(f"~/{tmp_path.name}") == tmp_path


def test_a_file_is_no_folder(tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors' is a file; it must be the folder"):
        resolve_model(file)


@pytest.mark.parametrize("name", ["nowhere", "./a/b", "/no/such/folder", "a/b/c", "~/nothing-here", "../x"])
def test_what_cannot_be_a_hub_name_is_not_looked_up(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("looked up"))
    with pytest.raises(FileNotFoundError, match="is not a folder, and it is not a hub name"):
        resolve_model(name)


def test_a_hub_name_is_fetched_without_the_other_weight_formats(tmp_path, monkeypatch):
    asked = {}

    def snapshot_download(name, allow_patterns):
        asked.update(name=name, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve_model("Qwen/Qwen3-0.6B") == tmp_path
    assert asked["name"] == "Qwen/Qwen3-0.6B"
    assert "*.safetensors" in asked["patterns"] and not any("bin" in pattern for pattern in asked["patterns"])


@pytest.mark.parametrize("error", [OSError("no route\nto host"), HFValidationError("bad"), ValueError()])
def test_a_hub_that_does_not_answer_is_named_with_its_reason(error, monkeypatch):
    def snapshot_download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(
        FileNotFoundError, match=r"'Qwen/Nothing' is no local folder, and the hub did not give it"
    ) as info:
        resolve_model("Qwen/Nothing")
    assert type(error).__name__ in str(info.value)
    assert (str(error).splitlines() or ["no reason given"])[0] in str(info.value)


def test_a_folder_without_tokenizer_files_has_none(tmp_path):
    assert load_tokenizer(tmp_path) is None


def test_a_tokenizer_is_loaded():
    tokenizer = load_tokenizer(EMBEDDED_MODEL)
    assert tokenizer.decode(tokenizer.encode("Once upon a time")) == "Once upon a time"


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"version": "1.0", "model": {"type": "none"}}'])
def test_a_corrupt_tokenizer_is_named(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ValueError, match=rf"the tokenizer in {tmp_path} cannot be read"):
        load_tokenizer(tmp_path)
