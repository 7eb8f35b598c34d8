"""The measurements behind lesson 01 and the two attention scripts in test-case/.

References: torch's autograd and distributions in float64, transformers' eager attention, exact enumeration.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from course import attention_variance as av

ROOT = Path(__file__).resolve().parents[2]


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "test-case" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- variance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(av.DISTRIBUTIONS))
def test_entries_have_the_moments_that_the_derivation_assumes(name):
    entry = av.entry_distribution(name)
    x = entry.draw((400_000,), torch.Generator().manual_seed(1))
    assert x.dtype == torch.float64
    assert abs(x.mean().item()) < 0.01
    assert abs(x.var().item() - 1) < 0.02
    assert x.pow(4).mean().item() == pytest.approx(entry.fourth_moment, rel=0.05)


@pytest.mark.parametrize("name", sorted(av.DISTRIBUTIONS))
@pytest.mark.parametrize("d", [1, 7, 64, 300])
def test_variance_of_a_score_is_the_dimension(name, d):
    m = av.measure_score_variance(d, 20_000, name, seed=3)
    assert m.expected == pytest.approx(d, rel=1e-12)
    assert abs(m.ratio - 1) < (0.05 if d > 1 else 0.15)  # at d = 1 a product of Laplace entries has heavy tails
    assert m.measured.low < m.measured.value < m.measured.high


def test_exact_enumeration_of_signs_gives_the_dimension():
    d = 4
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=d)), dtype=torch.float64)
    scores = (signs @ signs.T).flatten()
    assert scores.var(correction=0).item() == d


def test_interval_covers_the_truth_about_as_often_as_it_says():
    # Laplace entries: a chi-square interval would cover far less than it claims.
    hits = [av.measure_score_variance(4, 2_000, "laplace", seed=s, confidence=0.9) for s in range(200)]
    covered = sum(m.measured.low <= m.expected <= m.measured.high for m in hits)
    assert 165 <= covered <= 195


@pytest.mark.parametrize(
    "options", [{"rho": 0.3}, {"mean": 0.7}, {"std": 2.5}, {"rho": 0.2, "mean": -0.5, "std": 0.4}], ids=str
)
def test_closed_form_holds_for_correlated_shifted_and_scaled_entries(options):
    m = av.measure_score_variance(48, 60_000, seed=5, **options)
    assert abs(m.ratio - 1) < 0.06


def test_closed_form_against_a_general_gaussian():
    generator = torch.Generator().manual_seed(0)
    d = 6
    a, b = (torch.randn(d, d, generator=generator, dtype=torch.float64) for _ in range(2))
    mean_q, mean_k = (torch.randn(d, generator=generator, dtype=torch.float64) for _ in range(2))
    noise = torch.randn(2, 200_000, d, generator=generator, dtype=torch.float64)
    scores = ((mean_q + noise[0] @ a.T) * (mean_k + noise[1] @ b.T)).sum(-1)
    expected = av.expected_score_variance(a @ a.T, b @ b.T, mean_q, mean_k)
    assert scores.var().item() == pytest.approx(expected, rel=0.03)


def test_equal_correlation_makes_the_variance_quadratic():
    rho, d = 0.25, 128
    covariance = av.equicorrelated(d, rho)
    assert av.expected_score_variance(covariance, covariance) == pytest.approx(d + d * (d - 1) * rho * rho, rel=1e-12)


def test_chunks_do_not_lose_draws(monkeypatch):
    monkeypatch.setattr(av, "_CHUNK_ENTRIES", 100)
    scores = av.draw_scores(32, 1001, seed=2)
    assert scores.shape == (1001,)
    assert scores.unique().numel() == 1001


def test_same_seed_same_scores_and_another_seed_others():
    assert torch.equal(av.draw_scores(8, 50, seed=4), av.draw_scores(8, 50, seed=4))
    assert not torch.equal(av.draw_scores(8, 50, seed=4), av.draw_scores(8, 50, seed=5))


# --- softmax -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0, 60.0])
def test_jacobian_norm_equals_autograd(spread):
    logits = spread * torch.randn(5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = logits.softmax(-1)
    for row, norm in zip(logits, av.jacobian_norm(weights), strict=True):
        reference = torch.autograd.functional.jacobian(lambda z: z.softmax(-1), row)
        assert norm.item() == pytest.approx(reference.norm().item(), rel=1e-9)


def test_jacobian_norm_of_two_keys_and_of_uniform_weights():
    p = 0.3
    assert av.jacobian_norm(torch.tensor([p, 1 - p], dtype=torch.float64)).item() == pytest.approx(2 * p * (1 - p))
    uniform = torch.full((9,), 1 / 9, dtype=torch.float64)
    assert av.jacobian_norm(uniform).item() == pytest.approx(math.sqrt(8) / 9)


def test_jacobian_norm_keeps_its_digits_when_saturated():
    tiny = 1e-13
    weights = torch.tensor([1.0 - tiny, tiny], dtype=torch.float64)
    assert av.jacobian_norm(weights).item() == pytest.approx(2 * tiny, rel=1e-3)


def test_query_gradient_norm_equals_autograd():
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(8, generator=generator, dtype=torch.float64)
    keys = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    scale = 0.4
    reference = torch.autograd.functional.jacobian(lambda x: (scale * keys @ x).softmax(-1), q)
    got = av.query_gradient_norm((scale * keys @ q).softmax(-1), keys, scale)
    assert got.item() == pytest.approx(reference.norm().item(), rel=1e-12)


def test_entropy_equals_torch_distributions():
    weights = torch.rand(6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(-1)
    assert torch.allclose(av.entropy(weights), torch.distributions.Categorical(weights).entropy())
    assert av.entropy(torch.tensor([1.0, 0.0])).item() == 0


def test_entropy_estimate_for_many_keys():
    logits = torch.randn(200, 20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for std in (0.25, 1.0, 1.5):
        measured = av.entropy((std * logits).softmax(-1)).mean().item()
        assert measured == pytest.approx(av.entropy_estimate(20_000, std), abs=0.02)
    assert av.entropy_estimate(64, av.saturation_std(64)) == pytest.approx(0, abs=1e-12)
    assert av.entropy_estimate(64, 8.0) == 0


def test_only_one_rule_does_not_depend_on_the_dimension():
    measured = {
        rule: [av.measure_softmax(d, 64, av.attention_scale(d, rule), 300, seed=1) for d in (16, 64, 256)]
        for rule in ("1", "1/sqrt(d)", "1/d")
    }
    right = measured["1/sqrt(d)"]
    assert max(m.entropy for m in right) - min(m.entropy for m in right) < 0.05
    assert max(m.jacobian_median for m in right) / min(m.jacobian_median for m in right) < 1.1
    unscaled = [m.entropy for m in measured["1"]]
    assert unscaled[0] > 2 * unscaled[1] > 3 * unscaled[2]
    uniform = [math.log(64) - m.entropy for m in measured["1/d"]]
    assert uniform[0] > 3 * uniform[1] > 9 * uniform[2]  # 1 / (2 d): the softmax stops looking at its logits


def test_default_scale_is_one_over_the_square_root():
    assert av.measure_softmax(64, 8, rows=10).scale == 0.125
    assert av.attention_scale(64, "1/d") == 1 / 64
    assert av.attention_scale(64, "1") == 1


def test_matched_weight_is_the_softmax_of_one_logit_among_zeros():
    logits = torch.zeros(100, dtype=torch.float64)
    logits[3] = 5.0
    assert av.matched_weight(100, 5.0) == pytest.approx(logits.softmax(-1)[3].item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("value", [1.0, 1.99, 2.0, 3.0, 40.0, -100.0, 0.3])
def test_spacing_equals_nextafter(dtype, value):
    start = torch.tensor(value, dtype=dtype)
    ahead = torch.nextafter(start, torch.tensor(math.copysign(math.inf, value), dtype=dtype))
    assert av.spacing(start.item(), dtype) == abs(ahead.item() - start.item())


# --- QK-norm and a real model --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def qwen3():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        attn_implementation="eager",
    )
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_norm.weight.uniform_(-2, 2)
            layer.self_attn.k_norm.weight.uniform_(0.5, 3)
    return model


TOKENS = [5, 17, 3, 3, 90, 41, 8, 22, 60, 1]


def test_captured_heads_reproduce_transformers_attention(qwen3):
    layers = av.capture_heads(qwen3, TOKENS)
    with torch.no_grad():
        reference = qwen3(torch.tensor([TOKENS]), output_attentions=True).attentions
    assert len(layers) == len(reference) == 2
    rows, columns = torch.tril_indices(len(TOKENS), len(TOKENS))
    for heads, weights in zip(layers, reference, strict=True):
        logits = torch.full(weights[0].shape, -math.inf, dtype=torch.float64)
        logits[:, rows, columns] = heads.scores() / math.sqrt(heads.q.shape[-1])
        assert torch.allclose(logits.softmax(-1), weights[0].double(), atol=1e-6)


def test_capture_leaves_no_hook_behind(qwen3):
    def hooks() -> int:
        return sum(len(module._forward_hooks) for module in qwen3.modules())

    before = hooks()
    av.capture_heads(qwen3, TOKENS)
    with pytest.raises(IndexError):
        av.capture_heads(qwen3, [10_000])
    assert hooks() == before


def test_rms_norm_equals_transformers(qwen3):
    heads = av.capture_heads(qwen3, TOKENS)[0]
    assert torch.allclose(av.rms_norm(heads.q_raw, heads.q_gain), heads.q_normed, atol=1e-6)
    assert torch.allclose(av.rms_norm(heads.k_raw, heads.k_gain), heads.k_normed, atol=1e-6)


def test_logit_bound_holds_and_can_be_reached(qwen3):
    for heads in av.capture_heads(qwen3, TOKENS):
        largest = heads.scores().abs().max().item() / 4
        assert largest <= av.logit_bound(heads.q_gain, heads.k_gain)
    gain = torch.tensor([1.0, 3.0, 0.5, 1.0])
    x = torch.tensor([0.0, 1.0, 0.0, 0.0])  # all of the vector where the gain is largest
    q = k = av.rms_norm(x, gain, eps=0.0)
    assert (q @ k).item() / 2 == pytest.approx(av.logit_bound(gain, gain))


@pytest.mark.parametrize("tokens", [2, 16, 37])
def test_the_engines_layer_attends_as_torch_does_in_its_prefill_and_its_decode(tokens):
    from nanovllm.attention import get_backend
    from nanovllm.layers.attention import Attention

    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(heads, tokens, 8, generator=generator) for heads in (4, 2, 2))
    want = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, enable_gqa=True)
    for name in ("reference", "numba"):
        got = av.engine_attention(Attention(4, 2, 8, get_backend(name)), q, k, v)
        assert (got - want[0]).abs().max() < 1e-5


def test_override_scale_holds_inside_the_block_only(qwen3):
    ids = torch.tensor([TOKENS])
    with torch.no_grad():
        before = qwen3(ids).logits
        with pytest.raises(RuntimeError, match="stop"), av.override_scale(qwen3, 1.0):
            inside = qwen3(ids).logits
            raise RuntimeError("stop")
        after = qwen3(ids).logits
    assert torch.equal(before, after)
    assert torch.allclose(before[0, 0], inside[0, 0])  # one key: softmax is 1 whatever the scale
    assert not torch.allclose(before[0, -1], inside[0, -1], atol=1e-4)


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: av.measure_score_variance(0), "d"),
        (lambda: av.measure_score_variance(4, 2.5), "draws"),
        (lambda: av.draw_scores(4, 10, "cauchy"), "distribution"),
        (lambda: av.draw_scores(4, 10, rho=1.5), "rho"),
        (lambda: av.equicorrelated(4, -0.1), "rho"),
        (lambda: av.measure_score_variance(4, confidence=95), "confidence"),
        (lambda: av.estimate_variance(torch.zeros(1)), "samples"),
        (lambda: av.expected_score_variance(torch.eye(2), torch.eye(3)), "cov_q"),
        (lambda: av.attention_scale(4, "sqrt"), "rule"),
        (lambda: av.measure_softmax(4, keys=0), "keys"),
        (lambda: av.spacing(0.0, torch.float16), "value"),
        (lambda: av.logit_bound(torch.ones(4), torch.ones(3)), "q_gain"),
    ],
)
def test_bad_arguments_are_named(call, name):
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        call()


# --- figures and scripts -------------------------------------------------------------------------------------------


def test_variance_figure_shows_the_measurements():
    from course.attention_figures import draw_variance

    measurements = [av.measure_score_variance(d, 500) for d in (4, 16)]
    left, right = draw_variance(measurements).axes
    assert list(left.lines[1].get_ydata()) == [m.measured.value for m in measurements]
    assert list(left.lines[0].get_ydata()) == pytest.approx([4, 16])
    assert list(right.containers[0].lines[0].get_ydata()) == [m.ratio for m in measurements]


@pytest.mark.parametrize(("d", "scaled", "name"), [(4, False, "signs"), (512, True, "laplace"), (64, True, "signs")])
def test_slider_figure_shows_the_scores_that_it_names(d, scaled, name):
    from course.attention_figures import draw_scores_and_weights

    left, right = draw_scores_and_weights(d, scaled, name).axes
    logits = av.draw_scores(d, 4000, name) * (d**-0.5 if scaled else 1)
    heights = [patch.get_height() for patch in right.patches]
    assert heights == pytest.approx(logits[:16].softmax(-1).tolist())
    shown = sum(patch.get_height() * patch.get_width() for patch in left.patches)
    assert shown == pytest.approx(1)
    assert f"variance {logits.var().item():.2f}" in left.get_title(loc="left")


def test_saturation_figure_draws_the_closed_form_where_it_holds():
    from course.attention_figures import draw_saturation

    by_rule = {
        rule: [av.measure_softmax(d, 32, av.attention_scale(d, rule), 20) for d in (4, 64)]
        for rule in ("1", "1/sqrt(d)", "1/d")
    }
    lines = draw_saturation(by_rule).axes[0].lines
    dotted = [list(line.get_ydata()) for line in lines if line.get_linestyle() == ":"]
    assert dotted[0] == pytest.approx([math.log(32) - 0.5] * 2)
    assert dotted[1] == pytest.approx([math.log(32) - 1 / 8, math.log(32) - 1 / 128])
    assert len(dotted) == 2


def test_model_figure_shows_a_bound_above_every_bar(qwen3):
    from course.attention_figures import draw_model_scores

    _, right = draw_model_scores(av.capture_heads(qwen3, TOKENS)).axes
    bounds = right.lines[0].get_ydata()
    assert all(patch.get_height() <= bound for patch, bound in zip(right.patches, bounds, strict=True))


def test_terminal_script_prints_the_measured_variances(capsys):
    script = load_script("attention_qk_variance_simple")
    script.main(["--dims", "4", "64", "--draws", "4000", "--rows", "20", "--seed", "3"])
    out = capsys.readouterr().out
    for d in (4, 64):
        value = av.measure_score_variance(d, 4000, seed=3).measured.value
        line = next(line for line in out.splitlines() if re.match(rf"\s*{d}\s+{value:.2f}\s", line))
        assert line.split()[4] == str(d)  # the closed form; the interval takes two columns
    bars = [line.count("#") for line in out.splitlines() if "#" in line]
    assert bars[1] == 40 and bars[0] == pytest.approx(40 * math.log2(8) / math.log2(128), abs=1)
    assert out.count("1/sqrt(d)") == 2


def test_terminal_script_is_deterministic_and_refuses_nonsense(capsys):
    script = load_script("attention_qk_variance_simple")
    runs = []
    for _ in range(2):
        script.main(["--dims", "8", "--draws", "100", "--rows", "5"])
        runs.append(capsys.readouterr().out)
    assert runs[0] == runs[1]
    with pytest.raises(SystemExit):
        script.main(["--draws", "1"])
    assert "--draws must be at least 2" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["attention_qk_variance_simple", "attention_plot_generator"])
def test_scripts_run_alone_with_help(name):
    command = [sys.executable, str(ROOT / "test-case" / f"{name}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--seed" in done.stdout


def test_plot_generator_writes_readable_pictures(tmp_path, capsys):
    from matplotlib import image

    script = load_script("attention_plot_generator")
    folder = tmp_path / "new" / "plots"
    script.main(["--out", str(folder), "--draws", "200", "--rows", "10", "--keys", "8"])
    printed = capsys.readouterr().out.split()
    assert [Path(path).name for path in printed] == ["qk_variance.png", "softmax_saturation.png", "query_gradient.png"]
    for path in printed:
        pixels = image.imread(path)
        assert pixels.shape[0] >= 300 and pixels.shape[1] >= 600
        assert pixels[..., :3].std() > 0.05  # something is drawn
        assert pixels[0, 0, :3].min() > 0.9  # its own pale background, for dark pages
