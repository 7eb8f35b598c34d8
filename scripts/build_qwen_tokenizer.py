"""Builds the tokenizer of Qwen2 and Qwen3 from its published vocabulary, for tests and lessons without a network.

    python scripts/build_qwen_tokenizer.py tests/nanovllm/data/qwen.tiktoken.xz OUT_FOLDER

Writes the files that transformers' AutoTokenizer reads. A real checkpoint brings them itself. The chat template is a short one in Qwen3's format: ChatML turns, and an empty thought where
`enable_thinking` is false; it knows no tools and keeps earlier thoughts.
"""

from __future__ import annotations

import argparse
import base64
import lzma
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

NUM_BYTES = 256

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # English contractions
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # a word, with the blank or mark before it
    r"|\p{N}"  # each digit alone
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"  # punctuation
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"  # white space
)
"""Words are cut before BPE, so that no token spans two of them."""

# In the order of their ids, from the first that the vocabulary leaves free.
SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
# These are one token each too, but belong to the text: decoding shows them.
SHOWN_TOKENS = [
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
]

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking -%}
<think>

</think>

{% endif -%}
{%- endif -%}
"""


def read_vocabulary(path: Path) -> list[bytes]:
    """The tokens of a .tiktoken file (or .tiktoken.xz) in order of their rank; the rank is the token's id."""
    content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    lines = [line.split() for line in content.splitlines() if line]
    if [int(rank) for _, rank in lines] != list(range(len(lines))):
        raise ValueError(f"{path}: the ranks must count up from 0.")
    return [base64.b64decode(token) for token, _ in lines]


def recover_merges(vocabulary: list[bytes]) -> list[tuple[bytes, bytes]]:
    """The two halves of each token that is longer than a byte, in order of rank.

    The file does not say them. They are what is left of the token's bytes when all merges of lower rank are done.
    """
    ranks = {token: rank for rank, token in enumerate(vocabulary)}
    merges = []
    for rank, token in enumerate(vocabulary):
        if len(token) == 1:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            candidates = [ranks.get(a + b, rank) for a, b in zip(parts, parts[1:], strict=False)]
            best = min(candidates)
            if best == rank:
                raise ValueError(f"token {rank} ({token!r}) is not made up of two earlier ones.")
            at = candidates.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        merges.append((parts[0], parts[1]))
    return merges


def byte_alphabet() -> list[str]:
    """The character that byte-level BPE writes for each byte: printable ones for themselves, the rest from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(NUM_BYTES)]


def build(vocabulary: list[bytes]) -> PreTrainedTokenizerFast:
    """The tokenizer, with Qwen3's added tokens and a chat template."""
    alphabet = byte_alphabet()

    def spell(token: bytes) -> str:
        return "".join(alphabet[byte] for byte in token)

    merges = [(spell(left), spell(right)) for left, right in recover_merges(vocabulary)]
    tokenizer = Tokenizer(models.BPE({spell(token): rank for rank, token in enumerate(vocabulary)}, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in SHOWN_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL_TOKENS[1:],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocabulary", type=Path, help="qwen.tiktoken or qwen.tiktoken.xz")
    parser.add_argument("folder", type=Path, help="where the tokenizer's files go")
    arguments = parser.parse_args()
    tokenizer = build(read_vocabulary(arguments.vocabulary))
    tokenizer.save_pretrained(arguments.folder)
    print(f"{arguments.folder}: {len(tokenizer):,} tokens")


if __name__ == "__main__":
    main()
