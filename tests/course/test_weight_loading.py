"""What the lesson on loading says, against the safetensors library, the engine's loader and the engine's own forward pass."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from course import plots
from course import weight_loading as lesson
from course.exercises import CORRECT, grade
from course.notebooks import ROOT
from nanovllm.config import EMBEDDED_MODEL, ModelConfig
from nanovllm.utils.loader import INDEX_FILE, SINGLE_FILE, iterate_tensors, load_model

CONFIG = ModelConfig.from_folder(EMBEDDED_MODEL)
FILE = EMBEDDED_MODEL / SINGLE_FILE


def test_a_tensor_read_by_hand_equals_the_librarys():
    theirs = load_file(FILE)
    assert {name for name in lesson.read_header(FILE)[1] if name != "__metadata__"} == set(theirs)
    for name, tensor in theirs.items():
        mine = lesson.read_tensor(FILE, name)
        assert mine.dtype == tensor.dtype and torch.equal(mine, tensor), name


def test_a_split_checkpoint_holds_the_same_tensors_in_files_of_the_asked_size(tmp_path):
    weight_map = lesson.split_checkpoint(EMBEDDED_MODEL, tmp_path, max_bytes=2**21)
    sizes = [path.stat().st_size for path in tmp_path.glob("*.safetensors")]
    assert len(sizes) == len(set(weight_map.values())) > 3 and max(sizes) < 2**21 + 2**14
    assert (tmp_path / INDEX_FILE).exists()
    one, many = dict(iterate_tensors(EMBEDDED_MODEL)), dict(iterate_tensors(tmp_path))
    assert one.keys() == many.keys() and all(torch.equal(one[name], many[name]) for name in one)


def test_a_changed_checkpoint_differs_where_it_should(tmp_path):
    norm, gone = "model.norm.weight", "model.layers.0.mlp.up_proj.weight"
    folder = lesson.changed_checkpoint(EMBEDDED_MODEL, tmp_path / "x", {norm: torch.zeros(3), gone: None})
    tensors = load_file(folder / SINGLE_FILE)
    assert tensors[norm].shape == (3,) and gone not in tensors and len(tensors) == 67


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_the_parts_of_all_ranks_cover_each_matrix(ranks):
    parts = [lesson.rank_parts(CONFIG, rank, ranks) for rank in range(ranks)]
    for name, first in parts[0].items():
        seen = torch.zeros(first.shape, dtype=torch.int64)
        for mine in parts:
            seen[slice(*mine[name].rows), slice(*mine[name].columns)] += 1
        shared = ranks // CONFIG.num_key_value_heads if ranks > 4 and name.split(".")[-2] in ("k_proj", "v_proj") else 1
        assert (seen == shared).all(), name


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_exercises_rows_are_the_engines(ranks):
    h, kv, d = CONFIG.num_attention_heads, CONFIG.num_key_value_heads, CONFIG.head_dim
    for rank in range(ranks):
        parts = lesson.rank_parts(CONFIG, rank, ranks)
        model = lesson.empty_model(CONFIG, rank, ranks, fill=0.0)
        for shard in "qkv":
            first, stop, place = lesson._true_qkv_rows(shard, rank, ranks, h, kv, d)
            assert parts[f"model.layers.0.self_attn.{shard}_proj.weight"].rows == (first, stop)
            parameter = model.model.layers[0].self_attn.qkv_proj.weight
            parameter.data.zero_()
            parameter.weight_loader(parameter, torch.ones((h if shard == "q" else kv) * d, CONFIG.hidden_size), shard)
            filled = parameter[:, 0].nonzero().flatten().tolist()
            assert (filled[0], filled[-1] + 1) == (place, place + stop - first)


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_parameter_bytes_are_those_of_the_loaded_model(ranks):
    model = lesson.empty_model(CONFIG, 0, ranks)
    assert lesson.parameter_bytes(CONFIG, ranks) == 2 * sum(p.numel() for p in model.parameters())
    if ranks == 1:
        assert lesson.parameter_bytes(CONFIG) == sum(tensor.nbytes for tensor in load_file(FILE).values())


def test_every_silent_mistake_changes_the_loss_and_no_shape():
    ids = list(range(40, 100))
    right = lesson.load_like_the_engine(CONFIG, EMBEDDED_MODEL)
    shapes = {name: tensor.shape for name, tensor in right.state_dict().items()}
    reference = lesson.loss(right, ids)
    for name, mistake in lesson.silent_mistakes(CONFIG).items():
        model = lesson.load_like_the_engine(CONFIG, EMBEDDED_MODEL)
        mistake(model)
        assert {n: t.shape for n, t in model.state_dict().items()} == shapes
        assert abs(lesson.loss(model, ids) - reference) > 1e-4, name
        if name == "head left at 0":
            assert lesson.loss(model, ids) == pytest.approx(math.log(CONFIG.vocab_size), abs=1e-4)


def test_loss_equals_transformers():
    from course.anatomy import load_transformers

    ids = list(range(40, 100))
    with torch.no_grad():
        theirs = load_transformers(EMBEDDED_MODEL)(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
    assert lesson.loss(lesson.load_like_the_engine(CONFIG, EMBEDDED_MODEL), ids) == pytest.approx(theirs, abs=1e-3)


def test_the_ways_to_load_give_the_same_model(tmp_path):
    config = lesson.write_random_checkpoint(tmp_path, like=CONFIG)
    models = [way(config, tmp_path) for way in lesson.WAYS_TO_LOAD.values()]
    for model in models[1:]:
        for (name, mine), other in zip(models[0].named_parameters(), model.parameters(), strict=True):
            assert torch.equal(mine, other), name


def test_peak_memory_sees_what_is_made_and_dropped():
    """In a fresh process: one that has run for a while has memory to use again."""
    code = """
import torch
from course import weight_loading as lesson

with lesson.peak_memory() as peak:
    big = torch.ones(40 * 2**18)  # 40 MiB
    for _ in range(20):
        big += 1
    del big
print(peak() / 2**20)
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert 36 < float(finished.stdout) < 80


def test_the_loader_refuses_every_damage_that_the_lesson_shows(tmp_path):
    """The lesson prints its messages; here only that nothing damaged loads."""
    norm = "model.layers.3.input_layernorm.weight"
    for number, changes in enumerate(({norm: None}, {norm: torch.ones(1)}, {"extra": torch.ones(2)})):
        broken = lesson.changed_checkpoint(EMBEDDED_MODEL, tmp_path / str(number), changes)
        with pytest.raises(ValueError, match="does not fit"):
            load_model(lesson.empty_model(CONFIG), broken)


def test_figures_are_drawn():
    header = {name: entry for name, entry in lesson.read_header(FILE)[1].items() if name != "__metadata__"}
    figures = [lesson.draw_file(header), lesson.draw_losses({"right": 0.4, "wrong": 8.0}, 7.6)]
    figures += [lesson.draw_rank(CONFIG, rank, ranks) for rank, ranks in ((0, 1), (7, 8), (5, 2))]
    figures.append(lesson.draw_peaks({"one": 1.0, "two": 2.0}, 1.0))
    assert all(len(plots.png(figure)) > 5000 for figure in figures)


def test_the_models_own_functions_solve_the_exercises():
    assert grade("read-tensor", lesson.read_tensor).verdict == CORRECT
    assert grade("qkv-rows", lesson._true_qkv_rows).verdict == CORRECT
