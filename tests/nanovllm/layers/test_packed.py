"""Packed weights next to F.linear: the same numbers, never out of date, and only where they are meant to be."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nanovllm import LLM, SamplingParams
from nanovllm.kernels.cpu_linear import PANEL
from nanovllm.layers import packed
from nanovllm.layers.embedding import ParallelLMHead, VocabParallelEmbedding
from nanovllm.layers.linear import MergedColumnParallelLinear, RowParallelLinear
from nanovllm.layers.packed import FEW_ROWS, WatchedParameter, pack_weights
from nanovllm.utils.context import TensorParallel


@pytest.fixture(autouse=True, params=[1, 2], ids=["one thread", "two threads"])
def threads(request):
    """Our panels with one thread, oneDNN's order with two."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


needs_packing = pytest.mark.skipif(not packed.packing_works(), reason="this PyTorch has no oneDNN linear")


def layer(in_features: int = 24, out_features: int = 2 * PANEL, bias: bool = False) -> RowParallelLinear:
    module = RowParallelLinear(in_features, out_features, bias=bias, tp=TensorParallel())
    for parameter in module.parameters():
        parameter.data.normal_()
    return module


def packed_layer(**kwargs) -> RowParallelLinear:
    module = layer(**kwargs)
    assert pack_weights(module) == module.weight.nbytes
    return module


def plain(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The layer in float64, from its parameters as they are now."""
    weight, bias = module.weight.detach(), getattr(module, "bias", None)
    return F.linear(x.double(), weight.double(), None if bias is None else bias.detach().double())


def check(module: torch.nn.Module, x: torch.Tensor) -> None:
    torch.testing.assert_close(module(x).double(), plain(module, x), atol=1e-4, rtol=1e-5)


@needs_packing
@pytest.mark.parametrize("rows", [0, 1, 2, 16, 17, FEW_ROWS, FEW_ROWS + 1, 300])
@pytest.mark.parametrize("shape", [(256, 512), (33, 7), (33, 96), (1, 1), (640, 256)])
@pytest.mark.parametrize("bias", [False, True])
def test_same_as_float64(rows, shape, bias):
    module = packed_layer(in_features=shape[0], out_features=shape[1], bias=bias)
    with torch.inference_mode():
        wide = torch.randn(rows, shape[0] + 3)
        check(module, wide[:, 3:].contiguous())
        check(module, wide[:, 3:])
        assert module(wide[:, 3:]).shape == (rows, shape[1])


@needs_packing
def test_one_thread_takes_panels_where_the_outputs_fill_them(threads):
    for outputs in (PANEL, PANEL - 1, 3 * PANEL):
        module = packed_layer(out_features=outputs)
        check(module, torch.randn(4, 24))
        assert isinstance(module.packed._packed, np.ndarray) == (threads == 1 and outputs % PANEL == 0)


@needs_packing
def test_another_number_of_threads_packs_anew():
    module, x = packed_layer(out_features=2 * PANEL), torch.randn(4, 24)
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        check(module, x)
        assert isinstance(module.packed._packed, np.ndarray) == (threads == 1)


@needs_packing
def test_other_inputs_than_a_matrix_of_few_float32_rows():
    module = packed_layer(out_features=2 * PANEL)
    for shape in ((24,), (2, 3, 24)):
        check(module, torch.randn(shape))
    with pytest.raises(RuntimeError):
        module(torch.randn(4, 24).double())


def halve_in_place(weight):
    with torch.no_grad():
        weight.mul_(0.5)


def halve_in_inference_mode(weight):
    with torch.inference_mode():
        weight.mul_(0.5)


def halve_data(weight):
    weight.data.mul_(0.5)


def set_one_entry_of_data(weight):
    weight.data[1, 2] = 7.0


def assign_data(weight):
    weight.data = torch.randn_like(weight)


def halve_a_detached_view(weight):
    weight.detach()[3:].mul_(0.5)


CHANGES = [
    halve_in_place,
    halve_in_inference_mode,
    halve_data,
    set_one_entry_of_data,
    assign_data,
    halve_a_detached_view,
]


@needs_packing
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_every_change_in_place_is_noticed(change):
    module, x = packed_layer(), torch.randn(4, 24)
    check(module, x)
    before = module(x)
    change(module.weight)
    check(module, x)
    assert not torch.equal(module(x), before)


@needs_packing
def test_a_replaced_or_converted_weight_is_used():
    module, x = packed_layer(), torch.randn(4, 24)
    check(module, x)
    module.weight = torch.nn.Parameter(torch.randn(2 * PANEL, 24), requires_grad=False)
    check(module, x)
    module = packed_layer()
    check(module, x)
    assert module.to(torch.float64)(x.double()).dtype == torch.float64
    assert module.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    original = packed_layer()
    check(original, x)
    twin = copy.deepcopy(original)
    check(twin, x)
    twin.weight.data.zero_()
    assert not twin(x).any()
    check(original, x)


@needs_packing
def test_a_checkpoint_loaded_afterwards_is_used():
    tp = TensorParallel()
    module = MergedColumnParallelLinear(8, {"gate": PANEL, "up": PANEL}, bias=False, tp=tp)
    module.weight.data.normal_()
    pack_weights(module)
    x = torch.randn(3, 8)
    check(module, x)
    module.weight.weight_loader(module.weight, torch.randn(PANEL, 8), "up")
    check(module, x)
    module.load_state_dict({"weight": torch.randn(2 * PANEL, 8)})
    check(module, x)


@needs_packing
def test_the_head_stays_tied_to_the_embedding():
    tp = TensorParallel()
    model = torch.nn.ModuleDict(
        {"embed": VocabParallelEmbedding(3 * PANEL, 16, tp), "head": ParallelLMHead(3 * PANEL, 16, tp)}
    )
    model["head"].weight = model["embed"].weight
    model["embed"].weight.data.normal_()
    assert pack_weights(model) == model["embed"].weight.nbytes
    assert model["head"].weight is model["embed"].weight
    hidden = torch.randn(5, 16)
    check(model["head"], hidden)
    model["embed"].weight.data[7] = 3.0
    check(model["head"], hidden)
    assert torch.equal(model["embed"](torch.tensor([7])), torch.full((1, 16), 3.0))


def test_too_large_half_precision_and_meta_models_stay_as_they_are(monkeypatch):
    for module in (layer().bfloat16(), layer().to("meta")):
        assert pack_weights(module) == 0
        assert module.packed is None and type(module.weight) is torch.nn.Parameter
    module = layer()
    monkeypatch.setattr(packed, "MAX_PACKED_BYTES", module.weight.nbytes - 1)
    assert pack_weights(module) == 0
    assert module.packed is None and type(module.weight) is torch.nn.Parameter


@pytest.mark.parametrize("error", [AttributeError, RuntimeError, NotImplementedError])
def test_a_pytorch_without_the_operators_takes_the_plain_path(monkeypatch, error):
    def missing(weight):
        raise error("no such operator")

    monkeypatch.setattr(packed, "_pack", missing)
    packed.packing_works.cache_clear()
    try:
        module = layer()
        assert pack_weights(module) == 0
        check(module, torch.randn(4, 24))
    finally:
        packed.packing_works.cache_clear()


@needs_packing
def test_the_engine_packs_on_the_cpu_and_draws_the_same_tokens():
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    tokens = {}
    for backend in ("numba", "reference"):
        with LLM(device="cpu", dtype="float32", attention_backend=backend, num_kvcache_blocks=16) as llm:
            head = llm.model_runner.model.lm_head
            assert isinstance(head.weight, WatchedParameter) == (head.packed is not None) == (backend == "numba")
            tokens[backend] = llm.generate([[5, 6, 7], [8] * 20], params, use_tqdm=False)[1]["token_ids"]
            if backend == "numba":
                head.weight.data.zero_()
                assert llm.generate([[5, 6, 7]], params, use_tqdm=False)[0]["token_ids"] == [0] * 12
    assert tokens["numba"] == tokens["reference"]


def test_an_engine_made_in_inference_mode_works_without_packed_weights():
    params = SamplingParams(temperature=0, max_tokens=8)
    with torch.inference_mode(), LLM() as llm:
        inside = llm.generate([[5, 6, 7]], params, use_tqdm=False)[0]["token_ids"]
    with LLM() as llm:
        assert llm.generate([[5, 6, 7]], params, use_tqdm=False)[0]["token_ids"] == inside
