"""Token ids to text, one token at a time, without ever showing half a character."""

from __future__ import annotations

from typing import Protocol


class Tokenizer(Protocol):
    """The part of transformers' tokenizers that the engine uses."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str: ...


class Detokenizer:
    """Turns one request's generated ids into text and watches for its stop strings.

    A character can take several byte-level tokens (a Chinese character up to three, an emoji four), and some tokenizers
    decode a token differently at the start of a text. So a window of tokens is decoded with and without the newest ones;
    the difference is new text once it no longer ends in the replacement character.

    Attributes:
        text: what is decoded so far; where a stop string was found, what stands before it.
        stopped: a stop string was found.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()):
        self.tokenizer = tokenizer
        self.stop = stop
        self.text = ""
        self.stopped = False
        self._window: list[int] = []
        self._num_decoded = 0  # tokens of the window whose text is already in `text`

    def append(self, token_ids: list[int], *, last: bool = False) -> None:
        """Adds generated tokens. With `last`, an unfinished character is written as the replacement character."""
        if self.stopped:
            return
        self._window += token_ids
        before = self._decode(self._window[: self._num_decoded])
        after = self._decode(self._window)
        if after.endswith("\ufffd") and not last:
            return
        searched = len(self.text)
        self.text += after[len(before) :]
        self._window = self._window[self._num_decoded :]
        self._num_decoded = len(self._window)
        self._cut_at_stop(searched)

    @property
    def num_releasable(self) -> int:
        """Characters of `text` that no stop string can take back any more."""
        if self.stopped:
            return len(self.text)
        longest = 0
        for stop in self.stop:
            for length in range(min(len(stop) - 1, len(self.text)), longest, -1):
                if self.text.endswith(stop[:length]):
                    longest = length
                    break
        return len(self.text) - longest

    def _decode(self, token_ids: list[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=True) if token_ids else ""

    def _cut_at_stop(self, searched: int) -> None:
        # A stop string may have begun in the text that was searched before.
        hits = [self.text.find(stop, max(0, searched - len(stop) + 1)) for stop in self.stop]
        hits = [hit for hit in hits if hit >= 0]
        if hits:
            self.text = self.text[: min(hits)]
            self.stopped = True
