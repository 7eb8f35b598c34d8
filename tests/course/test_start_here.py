"""The arithmetic behind the pictures of notebook 00, against torch."""

from __future__ import annotations

import pytest
import torch

from course import chapters, notebooks, start_here


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 3.0])
def test_at_temperature_is_the_softmax_of_the_scaled_logits(temperature):
    logits = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5
    want = torch.softmax(logits / temperature, dim=0)
    got = torch.tensor(start_here.at_temperature(logits.tolist(), temperature), dtype=torch.float64)
    torch.testing.assert_close(got, want)
    shifted = start_here.at_temperature((logits - 7.5).tolist(), temperature)
    torch.testing.assert_close(torch.tensor(shifted, dtype=torch.float64), want)


def test_temperature_zero_is_greedy():
    assert start_here.at_temperature([1.0, 3.0, 2.0], 0) == [0.0, 1.0, 0.0]


def test_the_map_links_to_what_exists_and_names_the_rest():
    every = {chapter.name for chapter in chapters.CHAPTERS}
    assert {path.stem for path in notebooks.paths()} <= every
    for line in chapters.table("notebooks/").splitlines()[2:]:
        name = next(name for name in every if name in line)
        exists = (notebooks.FOLDER / f"{name}.ipynb").is_file()
        assert (f"(notebooks/{name}.ipynb)" in line) == exists
        assert ("(to come)" in line) != exists
