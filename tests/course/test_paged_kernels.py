"""The kernels of notebook 10 compute attention, move the bytes that the lesson says, and share work as the engine does."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from course import graphs, notebooks, plots, recorded

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

pytest.importorskip("triton")

from course import paged_kernels as lesson
from course.exercises import CORRECT, WRONG, grade
from nanovllm.attention import AttentionMetadata, get_backend
from nanovllm.kernels.paged_decode import INTERPRETER_SMS, DecodeConfig, default_config, plan_decode

LENGTHS = [37, 5, 60, 16]
RECORD = (
    "--heads 4 --kv-heads 2 --head-dim 32 --block-size 16 --sequences 3 --longest 40 --few 1 --very-long 70 --rounds 2"
)


@pytest.fixture(scope="module")
def case():
    return lesson.make_case(LENGTHS)


def test_the_reference_is_pytorchs_attention(case):
    """With a table that is the identity, and a sequence that fills its blocks, the cache is a plain tensor."""
    plain = lesson.make_case([16])
    cache = plain.cache[plain.tables[0].long()].double().cpu()  # (1, 2, KV, 16, D)
    keys, values = cache[0].unsqueeze(1)
    q = plain.q.double().cpu()[:, :, None]
    expected = F.scaled_dot_product_attention(q, keys, values, enable_gqa=True)[:, :, 0]
    assert lesson.error(lesson.in_float64(plain), expected) < 1e-12


def test_the_reference_is_the_engines_definition(case):
    count = len(LENGTHS)
    metadata = AttentionMetadata(
        query_start=torch.arange(count + 1, dtype=torch.int32),
        context_lens=case.lengths.cpu(),
        block_tables=case.tables.cpu(),
        slot_mapping=torch.full((count,), -1, dtype=torch.int32),
        num_decodes=count,
        max_query_len=1,
        max_context_len=max(LENGTHS),
    )
    nothing = torch.zeros(count, 2, 32)
    out = get_backend("reference")(case.q.cpu(), nothing, nothing, case.cache.cpu(), metadata, case.scale)
    assert lesson.error(out, lesson.in_float64(case)) < 1e-6


def test_every_foreign_slot_holds_nan(case):
    owned = ~case.cache.isnan()
    assert owned.sum() == sum(LENGTHS) * 2 * 2 * 32
    used = [block for row, n in zip(case.tables.tolist(), LENGTHS) for block in row[: -(-n // 16)]]
    assert len(used) == len(set(used)) == case.cache.shape[0] - 2


@pytest.mark.parametrize("step", lesson.STEPS)
@pytest.mark.parametrize(("heads", "block_size"), [(2, 16), (6, 64)])
def test_every_step_is_attention(step, heads, block_size):
    case = lesson.make_case([37, 1, 70, 64], heads=heads, block_size=block_size, seed=heads)
    assert lesson.error(lesson.STEPS[step](case), lesson.in_float64(case)) < 1e-5


@pytest.mark.parametrize("step", ["whole", "online", "packed", "split"])
def test_half_precision(step):
    case = lesson.make_case([37, 5], dtype=torch.float16)
    assert lesson.error(lesson.STEPS[step](case), lesson.in_float64(case)) < 2e-3


@pytest.mark.parametrize("splits", [1, 2, 16])
def test_any_number_of_splits(case, splits):
    assert lesson.error(lesson.split(case, splits), lesson.in_float64(case)) < 1e-5


def test_an_error_is_noticed(case):
    expected = lesson.in_float64(case)
    assert lesson.error(expected * 1.01, expected) > 1e-3
    assert lesson.error(torch.where(expected > 1e9, expected, torch.nan), expected) == float("inf")


# --- bytes and shares ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts the loads of Triton's interpreter")
@pytest.mark.parametrize("step", ["whole", "online", "packed", "split", "engine"])
@pytest.mark.parametrize("heads", [2, 8])
def test_a_step_reads_the_bytes_that_the_lesson_says(monkeypatch, step, heads):
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    builder = interpreter.InterpreterBuilder
    original, read = builder.create_masked_load, [0]

    def counted(self, pointers, mask, *rest):
        inside = (pointers.data >= start) & (pointers.data < start + case.cache.nbytes)
        read[0] += int((inside & mask.data).sum())
        return original(self, pointers, mask, *rest)

    case = lesson.make_case(LENGTHS, heads=heads)
    start = case.cache.data_ptr()
    monkeypatch.setattr(builder, "create_masked_load", counted)
    lesson.STEPS[step](case)
    assert read[0] == lesson.traffic(step, heads // 2) * 2 * 2 * 32 * sum(LENGTHS)


def test_gather_copies_once_repeats_once_and_reads_that():
    case = lesson.make_case([37], device="cpu")
    heavy = [name for name in graphs.launches(lambda: lesson.gather(case)) if name in ("index", "clone", "bmm", "mm")]
    assert heavy.count("index") - 1 == 1  # one of them looks up the block table
    assert heavy.count("clone") == 1
    assert heavy.count("bmm") == 2


@pytest.mark.parametrize("config", [None, DecodeConfig(64, 3, 4, 2), DecodeConfig(16, 8, 1, 2)])
@pytest.mark.parametrize("lengths", [[150, 40, 300, 90], [300], [16], [1040, 7]])
def test_even_shares_are_the_engines(lengths, config):
    case = lesson.make_case(lengths)
    plan = plan_decode(case.lengths, case.cache, max(lengths), config).tolist()
    total, programs = plan[0][4], plan[0][5]
    tile = (config or lesson.engine_config(case)).tile
    work = lesson.tiles(lengths, 2, tile)
    assert total == sum(count for _, count in work)
    assert programs == lesson.planned(work, tile, len(plan), multiprocessors())
    assert [tuple(row[:2]) for row in plan[:programs]] == [lesson.share(p, programs, total) for p in range(programs)]
    assert all(row[0] == row[1] for row in plan[programs:])


def multiprocessors():
    """Of the GPU, or those that the interpreter plays."""
    return torch.cuda.get_device_properties(0).multi_processor_count if torch.cuda.is_available() else INTERPRETER_SMS


def test_the_engine_computes_the_same_with_the_recorded_configuration():
    case = lesson.make_case([150, 40, 300, 90], seed=1)
    assert lesson.error(lesson.engine(case, DecodeConfig(64, 3, 4, 2)), lesson.in_float64(case)) < 1e-5


def test_the_records_are_of_the_configuration_that_the_lesson_names():
    """At these commits the kernel had tiles of 64 tokens and four warps. A newer record needs another text in section 8."""
    text = next(path for path in notebooks.paths() if path.stem.startswith("10_")).read_text(encoding="utf-8")
    names = ["paged_kernels", "kernels", "decode_attention-triton", "decode_attention_ragged-triton"]
    for commit in {recorded.load(name)["commit"] for name in names}:
        assert f"`{commit[:7]}`" in text


def test_the_engine_has_the_configuration_that_the_bench_chose():
    """The lesson says so: of the recorded ones, the engine's for many pairs is the one with which the whole is fastest."""
    times = lesson.config_times(recorded.load("decode_configs"))
    best = max(times, key=lambda row: row.bench)
    assert best.config == default_config(128, 2, num_pairs=2048)
    one_more = next(row for row in times if row.config == best.config._replace(stages=3))
    before = next(row for row in times if row.config == DecodeConfig(64, 3, 4, 2))
    for name in ("alone", "between"):  # the same time as the engine's, and a shorter one than the configuration before
        assert getattr(one_more, name) == pytest.approx(getattr(best, name), rel=0.005)
        assert getattr(one_more, name) < 0.95 * getattr(before, name)
    assert one_more.bench < before.bench < 0.97 * best.bench


@pytest.mark.parametrize("programs", [1, 3, 7, 40])
def test_every_tile_is_computed_once(programs):
    lengths = [960, 80, 160, 48]
    work = lesson.tiles(lengths, kv_heads=2, tile=16)
    for pieces in (
        lesson.deal_out(work, programs),
        lesson.deal_out(work, programs, splits=4),
        lesson.share_out(work, programs),
    ):
        for b, length in enumerate(lengths):
            assert sum(piece.tiles for piece in pieces if piece.sequence == b) == 2 * -(-length // 16)
        busy = [{piece.start + i for i in range(piece.tiles)} for piece in pieces]
        for program in range(programs):
            spans = [times for piece, times in zip(pieces, busy) if piece.program == program]
            assert sum(map(len, spans)) == len(set().union(*spans)), "two pieces at the same time"
    even = lesson.share_out(work, programs)
    assert lesson.busiest(even) == -(-sum(count for _, count in work) // programs)
    assert all(sum(p.partial for p in even if p.program == program) <= 2 for program in range(programs))


# --- exercises, pictures, records ----------------------------------------------------------------------------------


def test_the_checkers_accept_what_the_lesson_uses():
    assert grade("online-step", lesson.online_step).verdict == CORRECT
    assert grade("even-shares", lesson.share).verdict == CORRECT


def test_any_fair_partition_is_right():
    def first_ones_take_more(program, programs, total):
        size, rest = divmod(total, programs)
        first = program * size + min(program, rest)
        return first, first + size + (program < rest)

    assert grade("even-shares", first_ones_take_more).verdict == CORRECT


def test_an_overlap_is_named():
    verdict = grade("even-shares", lambda p, n, total: (max(0, p * total // n - 1), (p + 1) * total // n))
    assert verdict.verdict == WRONG
    assert "no tile twice" in verdict.message


def test_pictures_can_be_drawn(case):
    generator = torch.Generator().manual_seed(0)
    loads = [
        {
            "name": name,
            "lengths": [8, 9],
            "bytes": 10**6,
            "steps": [{"step": step, "seconds": [1e-4]} for step in steps],
        }
        for name, steps in (("equal", lesson.STEPS), ("few", ["gather", "engine"]))
    ]
    figures = [
        lesson.draw_cache(case),
        lesson.draw_online(torch.randn(40, generator=generator), torch.randn(40, 3, generator=generator), 8),
        lesson.draw_shares(100, 3),
        lesson.draw_rates(recorded.load("kernels")),
        lesson.draw_configs(lesson.config_times(recorded.load("decode_configs"))),
        lesson.draw_steps({"recorded": loads}),
        lesson.draw_steps({"recorded": loads, "here": loads}),
    ]
    assert len({plots.png(figure) for figure in figures}) == len(figures)


@pytest.mark.slow
def test_the_record_is_what_the_notebook_shows(tmp_path, monkeypatch):
    script = notebooks.ROOT / "benchmarks" / "record_paged_kernels.py"
    command = [sys.executable, str(script), *RECORD.split(), "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    (file,) = tmp_path.glob("*.json")
    data = json.loads(file.read_text(encoding="utf-8"))
    assert recorded.faults(data) == []
    assert [load["name"] for load in data["workloads"]] == ["equal", "ragged", "few and long"]
    tolerance = 2e-2 if torch.cuda.is_available() else 1e-5
    for load in data["workloads"]:
        assert [row["step"] for row in load["steps"]] == list(lesson.STEPS)
        assert all(row["error"] < tolerance and len(row["seconds"]) == 2 for row in load["steps"])

    monkeypatch.setattr(recorded, "FOLDERS", (tmp_path,))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    runs, badges = lesson.step_runs()
    assert list(runs) == ["recorded"]
    assert badges[0].startswith("recorded on")
    lesson.draw_steps(runs)


def test_without_a_record_the_badge_says_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.setattr(recorded, "FOLDERS", (tmp_path,))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    runs, (badge,) = lesson.step_runs()
    assert runs == {}
    assert "record_paged_kernels.py" in badge


def test_without_triton_the_message_says_what_to_do():
    script = "import sys; sys.modules['triton'] = None; import course.paged_kernels"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "pip install triton" in result.stderr.splitlines()[-1]
