"""What notebook 00 uses: pictures of the next token's probabilities, and the checkers of its exercises."""

from __future__ import annotations

import math
from typing import Any

from course import plots
from course.exercises import Wrong, checker, expect_close, expect_equal

CANDIDATES = 20


def next_token_logprobs(llm: Any, prompt: str) -> dict[str, float]:
    """Return the log probabilities of the 20 likeliest next tokens after `prompt`, likeliest first, by their text."""
    from nanovllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=1, logprobs=CANDIDATES)
    (result,) = llm.generate([prompt], params, use_tqdm=False)
    ranked = sorted(result["logprobs"][0].items(), key=lambda item: -item[1])
    return {llm.tokenizer.decode([token]): value for token, value in ranked[:CANDIDATES]}


def at_temperature(logprobs: list[float], temperature: float) -> list[float]:
    """Return the probabilities that sampling at `temperature` gives these tokens when no others are allowed (top_k).

    A constant added to all logits cancels in the softmax, so log probabilities serve as well as logits.
    """
    top = max(logprobs)
    if temperature == 0:
        winners = [float(value == top) for value in logprobs]
        return [value / sum(winners) for value in winners]
    weights = [math.exp((value - top) / temperature) for value in logprobs]
    return [weight / sum(weights) for weight in weights]


def draw_temperatures(logprobs: dict[str, float], temperatures: tuple[float, ...]) -> Any:
    """Draw the probabilities of the ten likeliest tokens, one panel a temperature, on one scale."""
    fig, axes = plots.figure(1, len(temperatures), figsize=(2.9 * len(temperatures), 3.3), sharey=True, squeeze=False)
    names = [repr(name)[1:-1] for name in list(logprobs)[:10]]
    for axis, temperature in zip(axes[0], temperatures):
        shares = at_temperature(list(logprobs.values()), temperature)[:10]
        axis.barh(range(len(names)), shares)
        axis.set(title=f"temperature {temperature:g}", xlim=(0, 1), xlabel="probability")
        axis.grid(axis="y", visible=False)
    axes[0][0].set_yticks(range(len(names)), [f"\u201c{name}\u201d" for name in names])
    axes[0][0].invert_yaxis()
    return fig


def play(llm: Any, prompt: str, logprobs: dict[str, float], max_tokens: int = 40) -> Any:
    """Display a temperature slider with the probabilities and a fresh text for each of its positions."""
    import ipywidgets
    from IPython.display import display

    from nanovllm import SamplingParams

    def redraw(temperature: float, seed: int) -> None:
        plots.show(draw_temperatures(logprobs, (temperature,)), alt=f"probabilities at temperature {temperature:g}")
        params = SamplingParams(temperature=temperature, top_k=CANDIDATES, max_tokens=max_tokens, seed=seed)
        (result,) = llm.generate([prompt], params, use_tqdm=False)
        print(prompt + result["text"])

    wide = {"description_width": "90px"}
    common = {"continuous_update": False, "style": wide}
    slider = ipywidgets.FloatSlider(0.8, min=0, max=2, step=0.1, description="temperature", **common)
    seed = ipywidgets.IntSlider(0, min=0, max=20, description="seed", **common)
    widget = ipywidgets.interactive(redraw, temperature=slider, seed=seed)
    display(widget)
    return widget


@checker("likeliest-token")
def _likeliest_token(likeliest: Any) -> str:
    example = {11: -2.5, 7: -0.3, 23: -4.0}
    got = likeliest(dict(example))
    if isinstance(got, float):
        raise Wrong(f"You returned {got:g}, a log probability. The loop needs the token that has it: {7}.")
    expect_equal(f"likeliest({example})", got, 7, hint="the nearer a log probability is to 0, the likelier the token")
    expect_equal("likeliest({5: -1.0, 900: -1.5})", likeliest({5: -1.0, 900: -1.5}), 5, hint="compare values, not ids")
    return "With this function in the loop you have written greedy decoding"


@checker("softmax-temperature")
def _softmax_temperature(probabilities: Any) -> str:
    logits = [2.0, 1.0, 0.0]

    def picture(axis: Any) -> None:
        grid = [0.25 * step for step in range(1, 17)]
        axis.plot(grid, [at_temperature(logits, t)[0] for t in grid], label="should be")
        axis.plot(grid, [float(probabilities(list(logits), t)[0]) for t in grid], "--", label="yours")
        axis.set(xlabel="temperature", ylabel="probability of the likeliest token")
        axis.legend()

    for temperature in (1.0, 0.5, 2.0):
        got = [float(value) for value in probabilities(list(logits), temperature)]
        want = at_temperature(logits, temperature)
        if len(got) != len(want):
            raise Wrong(f"{len(logits)} logits went in, {len(got)} probabilities came out.")
        if abs(sum(got) - 1) > 1e-6:
            raise Wrong(
                f"At temperature {temperature:g} your probabilities add up to {sum(got):.4g}, not to 1.", picture
            )
        if any(abs(a - b) > 1e-6 for a, b in zip(got, want)):
            opposite = at_temperature(logits, 1 / temperature)
            if all(abs(a - b) < 1e-6 for a, b in zip(got, opposite)):
                raise Wrong("A low temperature makes your distribution flatter; it should make it sharper.", picture)
            raise Wrong(
                f"At temperature {temperature:g} the logits {logits} give "
                f"{[round(p, 4) for p in got]}, but should give {[round(p, 4) for p in want]}.",
                picture,
            )
    big, hint = [1000.0, 999.0], "subtract the largest logit first: it cancels, and exp cannot overflow"
    try:
        first = probabilities(list(big), 1.0)[0]
    except OverflowError:
        raise Wrong(f"exp overflows for logits as large as 1000. {hint.capitalize()}.") from None
    expect_close(f"for the logits {big} the first probability", first, at_temperature(big, 1.0)[0], hint=hint)
    return "Low temperatures sharpen, high ones flatten, and 1 leaves the model's own probabilities"


@checker("decode-rate")
def _decode_rate(rate: Any) -> str:
    metrics = {"queued": 0.01, "first_token": 0.5, "total": 2.5}
    got = rate(dict(metrics), 101)
    if isinstance(got, int | float):
        if math.isclose(got, 101 / 2.5):
            raise Wrong("That is tokens over the whole time. It counts the wait for the first token as decoding.")
        if math.isclose(got, 101 / 2.0):
            raise Wrong("Nearly: the first token came out of the prefill, so 100 tokens were decoded, not 101.")
    expect_close("the rate for 101 tokens, the first after 0.5 s and the last after 2.5 s", got, 50.0)
    return "100 tokens in 2 seconds; the first one belongs to the prefill"
