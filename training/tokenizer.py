"""Trains the tiny model's byte-level BPE on the generated corpus.

Bytes are the alphabet, so any text round-trips, Chinese and emoji included; every digit is a token of its own, as in
Qwen's tokenizer; there is no normalizer, so nothing is changed on the way in.

    python training/tokenizer.py --out training/out/tokenizer
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path

from data import END_OF_TEXT, IM_END, IM_START, examples
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 2048
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END)  # ids 0, 1, 2
MAX_LENGTH = 2048
# A word with the space before it, one digit, or a run of signs or of white space.
SPLIT = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def train_tokenizer(seed: int = 0, documents: int = 30_000, vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """A byte-level BPE with exactly `vocab_size` entries, learned from `documents` training examples."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    def texts():
        for example in islice(examples(seed, "train"), documents):
            document = example.document()
            for special in SPECIAL_TOKENS:
                document = document.replace(special, "")
            yield document

    tokenizer.train_from_iterator(texts(), trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"the corpus gave {tokenizer.get_vocab_size()} entries, not vocab_size={vocab_size}")
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, which transformers.AutoTokenizer loads offline."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(i): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for i, token in enumerate(SPECIAL_TOKENS)
        },
        "additional_special_tokens": [IM_START, IM_END],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": IM_END,
        "model_max_length": MAX_LENGTH,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--documents", type=int, default=30_000)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    tokenizer = train_tokenizer(args.seed, args.documents)
    save_tokenizer(tokenizer, args.out)
    documents = [example.document() for example in islice(examples(args.seed + 1), 2000)]
    tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(documents))
    print(f"{tokenizer.get_vocab_size()} entries, {sum(map(len, documents)) / tokens:.2f} characters a token")


if __name__ == "__main__":
    main()
