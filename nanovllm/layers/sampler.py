"""From logits to the next token.

A draw uses no generator state: the noise of token v at position t of a request is a hash of (the request's seed, t, v).
So a request draws the same tokens whatever its batch mates, however it was chunked, and also when it is preempted and
computed again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

MASK32 = 0xFFFFFFFF


@dataclass(slots=True)
class SamplingBatch:
    """The sampling parameters of the B rows of logits, as tensors on the logits' device.

    Attributes:
        temperatures: (B) float32, 0 for greedy rows.
        seeds: (B) int64.
        positions: (B) int64, the index in its sequence of the token that is drawn.
        filtered: (F) int64, the rows that filter; None where none does.
        top_k: (F) int64 (the vocabulary's size where all are kept), top_p and min_p: (F) float32.
        all_greedy: every row is greedy; nothing else is read then, so the three tensors above may be None.
        fused: draw the rows that do not filter in one pass of our Triton kernel. Its noise may differ by some millionths,
            so which sampler a row gets depends on the row alone.
    """

    temperatures: torch.Tensor | None = None
    seeds: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    filtered: torch.Tensor | None = None
    top_k: torch.Tensor | None = None
    top_p: torch.Tensor | None = None
    min_p: torch.Tensor | None = None
    all_greedy: bool = False
    fused: bool = False


def sample(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """Logits (B, V) -> token ids (B), int64.

    Drawing from softmax(logits / T) is taking the largest of logits / T + Gumbel noise (Gumbel 1954; Maddison et al.
    2014), so neither a softmax nor a cumulative sum is needed.
    """
    if batch.fused:
        from nanovllm.kernels.sample import sample as sample_fused

        tokens = sample_fused(logits, batch.temperatures, batch.seeds, batch.positions)
        if batch.filtered is not None:
            tokens[batch.filtered] = sample(logits[batch.filtered], _filtered_rows(batch))
        return tokens
    greedy = logits.argmax(dim=-1)
    if batch.all_greedy:
        return greedy
    temperatures = batch.temperatures.unsqueeze(-1)
    scaled = logits.float() / temperatures.clamp(min=1e-5)
    if batch.filtered is not None:
        scaled[batch.filtered] = filter_logits(scaled[batch.filtered], batch.top_k, batch.top_p, batch.min_p)
    noise = gumbel_noise(batch.seeds, batch.positions, logits.shape[-1])
    return torch.where(batch.temperatures > 0, (scaled + noise).argmax(dim=-1), greedy)


def _filtered_rows(batch: SamplingBatch) -> SamplingBatch:
    """The rows that filter, as a batch for the sampler in PyTorch."""
    rows = batch.filtered
    return SamplingBatch(
        temperatures=batch.temperatures[rows],
        seeds=batch.seeds[rows],
        positions=batch.positions[rows],
        filtered=torch.arange(len(rows), device=rows.device),
        top_k=batch.top_k,
        top_p=batch.top_p,
        min_p=batch.min_p,
    )


def filter_logits(scaled: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Sets the logits (B, V) that the filters drop to -inf: top-k first, then top-p of what is left, then min-p.

    The most likely token always stays. Tokens that tie with the k-th most likely one stay too.
    """
    ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
    kth = ordered.gather(-1, top_k.clamp(max=scaled.shape[-1]).unsqueeze(-1) - 1)
    ordered = ordered.masked_fill(ordered < kth, -torch.inf)
    probs = ordered.softmax(dim=-1)
    # A token stays while the tokens before it have not reached top_p; the first has none before it. With top_p 1 all
    # stay: a sum that rounding brought to 1 must not cut the tail.
    top_p = top_p.masked_fill(top_p >= 1, torch.inf).unsqueeze(-1)
    dropped = probs.cumsum(dim=-1) - probs >= top_p
    dropped |= probs < min_p.unsqueeze(-1) * probs[:, :1]
    dropped[:, 0] = False
    return torch.empty_like(scaled).scatter_(-1, order, ordered.masked_fill(dropped, -torch.inf))


def apply_penalties(
    logits: torch.Tensor,
    prompt_token_ids: list[int],
    output_token_ids: list[int],
    repetition_penalty: float,
    presence_penalty: float,
    frequency_penalty: float,
) -> None:
    """Changes one row of logits (V) in place, as vLLM and OpenAI define the three penalties."""
    device = logits.device
    seen = torch.tensor(sorted({*prompt_token_ids, *output_token_ids}), device=device)
    picked = logits[seen]
    logits[seen] = torch.where(picked > 0, picked / repetition_penalty, picked * repetition_penalty)
    if output_token_ids and (presence_penalty or frequency_penalty):
        tokens, counts = torch.tensor(output_token_ids, device=device).unique(return_counts=True)
        logits[tokens] -= presence_penalty + frequency_penalty * counts


def top_logprobs(logits: torch.Tensor, token_ids: torch.Tensor, num: int) -> list[dict[int, float]]:
    """For each row of (B, V) the log-softmax of its `num` most likely tokens and of the token taken, best first."""
    logprobs = logits.float().log_softmax(dim=-1)
    best, best_ids = logprobs.topk(min(num, logits.shape[-1]), dim=-1)
    taken = logprobs.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    rows = zip(best_ids.tolist(), best.tolist(), token_ids.tolist(), taken.tolist(), strict=True)
    return [{**dict(zip(ids, values, strict=True)), token: value} for ids, values, token, value in rows]


def gumbel_noise(seeds: torch.Tensor, positions: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Standard Gumbel noise (B, vocab_size), float32, a pure function of (seed, position, token id).

    The key of a row mixes both halves of its seed with its position; murmur3's 32-bit finalizer turns key and token id
    into 23 random bits: u = (bits + 1/2) / 2^23 lies strictly between 0 and 1 and is exact in float32.
    """
    key = fmix32((seeds & MASK32) ^ fmix32((seeds >> 32 & MASK32) ^ fmix32(positions)))
    token_ids = torch.arange(vocab_size, device=seeds.device) * 0x9E3779B1 & MASK32
    bits = fmix32(key.unsqueeze(-1) ^ token_ids) >> 9
    uniform = (bits.float() + 0.5) * 2.0**-23
    return -torch.log(-torch.log(uniform))


def fmix32(x: torch.Tensor) -> torch.Tensor:
    """Murmur3's finalizer (Appleby) on 32-bit values held in int64."""
    x = (x ^ x >> 16) * 0x85EBCA6B & MASK32
    x = (x ^ x >> 13) * 0xC2B2AE35 & MASK32
    return x ^ x >> 16
