"""A tokenizer of one-byte tokens for tiny random checkpoints: ASCII, and the bytes of two characters that take several."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<|im_start|>", "<|im_end|>"]
TEXT = "".join(map(chr, range(32, 127))) + "\n" + "\u4f60\U0001f642"
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
    "{%- if shout is defined %}{{ shout }}{%- endif %}"
)


def add_tokenizer(folder: Path) -> int:
    """Writes the tokenizer's files and returns the size of its vocabulary."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters = sorted(set(byte_level.pre_tokenize_str(TEXT)[0][0]))
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIAL[1], chat_template=CHAT_TEMPLATE
    ).save_pretrained(folder)
    return tokenizer.get_vocab_size()
