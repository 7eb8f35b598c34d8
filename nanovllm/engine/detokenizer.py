"""Token ids to text, one token at a time, without ever showing half a character."""

from __future__ import annotations

from typing import Protocol

REPLACEMENT = "\ufffd"
LONGEST_CHARACTER = 4
"""Bytes of the longest character in UTF-8, and so the most byte-level tokens that one can take."""

WINDOW = 16
"""Tokens after which the window is cut back to the last LONGEST_CHARACTER."""


class Tokenizer(Protocol):
    """The part of transformers' tokenizers that the engine uses."""

    all_special_ids: list[int]

    def encode(self, text: str) -> list[int]: ...

    def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str: ...


class Detokenizer:
    """Turns one request's generated ids into text and watches for its stop strings.

    A character can take several byte-level tokens (a Chinese character up to three, an emoji four), and some tokenizers
    decode a token differently at the start of a text. So the last few tokens are decoded together; what that text has
    beyond the text of the tokens before is new, once it no longer ends in the replacement character.

    Ids that never make up a character, as a model may draw at a high temperature, are not waited for: once as many
    tokens are undecoded as a character can take, all but the last replacement character is final, because only the
    last bytes can still become something else.

    Attributes:
        text: what is decoded so far; where a stop string was found, what stands before it.
        stopped: a stop string was found.
        num_tokens: ids that were added so far.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()):
        self.tokenizer = tokenizer
        self.stop = stop
        self.text = ""
        self.stopped = False
        self.num_tokens = 0
        self._special = frozenset(tokenizer.all_special_ids)  # not shown, so they may not crowd the window
        self._window: list[int] = []
        self._num_undecoded = 0  # tokens at the window's end whose text is not in `text` yet
        self._decoded = ""  # the text of the others

    def append(self, token_ids: list[int], *, last: bool = False) -> None:
        """Adds generated tokens. With `last`, an unfinished character is written as the replacement character."""
        whole = last and self.num_tokens == 0 and not self.stop
        self.num_tokens += len(token_ids)
        if whole:  # nobody watched it grow: one call instead of one a token
            self.text = self._decode(token_ids)
            return
        for token_id in token_ids:
            if not self.stopped and token_id not in self._special:
                self._append(token_id)
        if last and not self.stopped:
            self._write(self._decode(self._window))

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

    def _append(self, token_id: int) -> None:
        self._window.append(token_id)
        self._num_undecoded += 1
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT):
            if self._num_undecoded < LONGEST_CHARACTER:
                return
            text = text[:-1]
        self._write(text)
        self._num_undecoded = 0
        if len(self._window) >= WINDOW:
            # The window may start amid a character; after four bytes the decoder is in step again.
            self._window = self._window[-LONGEST_CHARACTER:]
            self._decoded = self._decode(self._window).removesuffix(REPLACEMENT)

    def _write(self, text: str) -> None:
        """Appends what the window's text has beyond that of the tokens decoded before."""
        searched = len(self.text)
        self.text += text[len(self._decoded) :]
        self._decoded = text
        self._cut_at_stop(searched)

    def _decode(self, token_ids: list[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=True) if token_ids else ""

    def _cut_at_stop(self, searched: int) -> None:
        # A stop string may have begun in the text that was searched before.
        hits = [self.text.find(stop, max(0, searched - len(stop) + 1)) for stop in self.stop]
        hits = [hit for hit in hits if hit >= 0]
        if hits:
            self.text = self.text[: min(hits)]
            self.stopped = True
