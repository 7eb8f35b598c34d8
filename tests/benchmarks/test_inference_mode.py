"""The measurement behind the guide on inference_mode: each mode really runs, and only autograd keeps tensors."""

from __future__ import annotations

import json
import sys

import inference_mode
import pytest
import torch

from course.recorded import faults
from nanovllm.config import EMBEDDED_MODEL


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    out = tmp_path_factory.mktemp("records")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["x", "--tokens", "1", "40", "--rounds", "2", "--out", str(out)])
        inference_mode.main()
    torch.set_num_threads(threads)
    (path,) = out.iterdir()
    assert path.name == "inference_mode-embedded.json"
    return json.loads(path.read_text())


def test_it_writes_a_record_of_all_modes(record):
    assert not faults(record) and record["workload"]["model"] == "embedded"
    assert [(entry["code"], entry["tokens"]) for entry in record["passes"]] == [
        *[("transformers", 1), ("engine", 1)],
        *[("transformers", 40), ("engine", 40)],
    ]
    for entry in record["passes"]:
        names = ["default", "frozen", "no_grad", "inference_mode"]
        assert list(entry["seconds"]) == (names if entry["code"] == "transformers" else names[1:])
        assert all(len(samples) == 2 and min(samples) > 0 for samples in entry["seconds"].values())


def test_only_autograd_keeps_tensors(record):
    kept = [entry["kept_bytes"] for entry in record["passes"] if entry["code"] == "transformers"]
    assert 0 < kept[0]["default"] < kept[1]["default"]
    assert all(each[mode] == 0 for each in kept for mode in ("frozen", "no_grad", "inference_mode"))


def test_each_mode_is_the_one_that_it_says(tmp_path):
    model = torch.nn.Linear(2, 2)
    seen = {}
    for name, context in inference_mode.modes_of(model).items():

        def look(name=name):
            out = model(torch.ones(1, 2))
            seen[name] = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), out.requires_grad

        inference_mode.under(context, look)()
    assert seen == {
        "default": (True, False, True),
        "frozen": (True, False, False),
        "no_grad": (False, False, False),
        "inference_mode": (False, True, False),
    }
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_engines_pass_computes_what_the_engine_computes():
    from course.anatomy import run_engine
    from nanovllm import LLM

    with LLM(EMBEDDED_MODEL, device="cpu", **inference_mode.SETTINGS) as llm:
        seen = []
        model = llm.model_runner.model
        logits = model.compute_logits
        model.compute_logits = lambda hidden: seen.append(logits(hidden))
        inference_mode.engine_forward(llm, 20)()
        model.compute_logits = logits
        assert torch.allclose(seen[0], run_engine(llm, list(range(20))).logits[-1:], atol=1e-4)
