"""The user's view of the engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from nanovllm.config import EMBEDDED_MODEL, EngineConfig
from nanovllm.engine.llm_engine import LLMEngine, detokenize
from nanovllm.outputs import RequestOutput, StreamOutput
from nanovllm.sampling_params import SamplingParams
from nanovllm.utils.validation import unknown_argument

Prompt = str | list[int]
Message = dict[str, str]


class LLM(LLMEngine):
    """A language model that generates.

    Args:
        model: folder of a checkpoint, or a hub name; by default the tiny Qwen3 that ships with the package.
        **config: the fields of `EngineConfig`.

    Raises:
        TypeError, ValueError, FileNotFoundError: names the argument or the file and says what is allowed.

    Example:
        >>> from nanovllm import LLM, SamplingParams
        >>> with LLM() as llm:
        ...     print(llm.generate(["Once upon a time"], SamplingParams(temperature=0))[0]["text"])
    """

    def __init__(self, model: str | Path = EMBEDDED_MODEL, **config: Any):
        known = [field.name for field in dataclasses.fields(EngineConfig)]
        for name in config:
            if name not in known:
                raise TypeError(unknown_argument("LLM", name, known))
        super().__init__(EngineConfig(model=model, **config))

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Completes prompts and returns their results in the same order.

        Args:
            prompts: a string or a list of token ids, or a list of those.
            sampling_params: one for all prompts, or one each; None takes the defaults.
            use_tqdm: show a progress bar with the rates of prefill and decode.

        Raises:
            TypeError, ValueError: names the prompt and what is wrong with it; nothing has been computed then.
        """
        prompts = [prompts] if _is_one_prompt(prompts) else list(prompts)
        params = self._one_each(sampling_params, len(prompts))
        token_ids = []
        for index, prompt in enumerate(prompts):
            try:
                token_ids.append(self.check_prompt(prompt))
            except (TypeError, ValueError) as error:
                raise type(error)(f"prompts[{index}]: {error}") from None
        request_ids: list[int] = []
        try:
            for ids, param in zip(token_ids, params, strict=True):
                request_ids.append(self.add_request(ids, param))
            self._run_until_finished(request_ids, use_tqdm)
        finally:
            # An interrupted call (Ctrl-C in a notebook, say) leaves nothing behind.
            for request_id in request_ids:
                self.abort(request_id)
            outputs = [self.take_output(request_id) for request_id in request_ids]
        return outputs

    def _run_until_finished(self, request_ids: list[int], use_tqdm: bool) -> None:
        mine = set(request_ids)
        rates = {"prefill": "-", "decode": "-"}
        with tqdm(total=len(mine), desc="Generating", unit="prompt", disable=not use_tqdm, dynamic_ncols=True) as bar:
            while mine:
                step = self.step()
                if step.num_prefill_tokens:
                    rates["prefill"] = f"{step.num_prefill_tokens / step.seconds:.0f} tok/s"
                if step.num_decode_tokens:
                    rates["decode"] = f"{step.num_decode_tokens / step.seconds:.0f} tok/s"
                bar.set_postfix(rates, refresh=False)
                done = mine.intersection(request.request_id for request in step.finished)
                mine -= done
                bar.update(len(done))

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[StreamOutput]:
        """Completes one prompt and yields each piece of text as soon as no stop string can take it back.

        The request is checked and queued at once. Other calls may run meanwhile, and closing the iterator aborts it.
        """
        if isinstance(sampling_params, SamplingParams) and sampling_params.n != 1:
            raise ValueError(f"n must be 1 in a stream, got {sampling_params.n}.")
        pieces = self._stream(self.add_request(prompt, sampling_params))
        # Closing a generator that was never started runs none of its code: start it, so that its `finally` is due.
        next(pieces)
        return pieces

    def _stream(self, request_id: int) -> Iterator[StreamOutput]:
        """Yields an empty piece first, before any step."""
        request = self.get_request(request_id)
        seq, detokenizer = request.sequences[0], request.detokenizers[0]
        num_tokens = num_chars = 0
        try:
            yield StreamOutput(text=None, token_ids=[], finish_reason=None)
            while True:
                if not seq.is_finished and seq.num_completion_tokens == num_tokens:
                    self.step()
                    if not seq.is_finished and seq.num_completion_tokens == num_tokens:
                        continue
                text = None
                if detokenizer:
                    detokenize(seq, detokenizer)
                    end = len(detokenizer.text) if seq.is_finished else detokenizer.num_releasable
                    text, num_chars = detokenizer.text[num_chars:end], max(num_chars, end)
                new_ids = seq.completion_token_ids[num_tokens:]
                num_tokens += len(new_ids)
                reason = seq.finish_reason.value if seq.is_finished else None
                yield StreamOutput(text=text, token_ids=new_ids, finish_reason=reason)
                if reason:
                    return
        finally:
            self.abort(request_id)
            self.take_output(request_id)

    def chat(
        self,
        messages: list[Message] | list[list[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        **template_arguments: Any,
    ) -> RequestOutput | list[RequestOutput]:
        """Answers a conversation, a list of {"role": ..., "content": ...}, or several; one result each.

        Args:
            messages: one conversation (one result is returned), or a list of conversations (a list is).
            sampling_params, use_tqdm: as in `generate`.
            **template_arguments: handed to the chat template, such as enable_thinking=False for Qwen3.

        Raises ValueError where the model has no chat template.
        """
        one = bool(messages) and isinstance(messages[0], dict)
        conversations = [messages] if one else messages
        prompts = [self.apply_chat_template(conversation, **template_arguments) for conversation in conversations]
        outputs = self.generate(prompts, sampling_params, use_tqdm)
        return outputs[0] if one else outputs

    def apply_chat_template(self, messages: list[Message], **template_arguments: Any) -> list[int]:
        """The token ids of a conversation up to the point where the assistant answers."""
        if self.tokenizer is None or not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(f"{self.config.model} has no chat template; use generate.")
        if not isinstance(messages, (list, tuple)) or not messages:
            raise ValueError("messages must be a list of at least one {'role': ..., 'content': ...}.")
        for message in messages:
            if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
                raise ValueError(f"each message must have the keys 'role' and 'content', got {message!r}.")
            if not isinstance(message["role"], str) or not isinstance(message["content"], str):
                raise TypeError(f"role and content of each message must be strings, got {message!r}.")
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **template_arguments
        )
        return self.tokenizer.encode(text, add_special_tokens=False)

    @staticmethod
    def _one_each(
        sampling_params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
    ) -> list[SamplingParams]:
        if sampling_params is None:
            sampling_params = SamplingParams()
        if isinstance(sampling_params, SamplingParams):
            return [sampling_params] * num_prompts
        if not isinstance(sampling_params, (list, tuple)) or not all(
            isinstance(params, SamplingParams) for params in sampling_params
        ):
            raise TypeError("sampling_params must be a SamplingParams or a list of them.")
        if len(sampling_params) != num_prompts:
            raise ValueError(f"sampling_params has {len(sampling_params)} entries for {num_prompts} prompts.")
        return list(sampling_params)


def _is_one_prompt(prompts: Any) -> bool:
    """Whether `prompts` is a single prompt: a string, or a list of ints (an empty list is no prompts)."""
    if isinstance(prompts, str):
        return True
    if not isinstance(prompts, (list, tuple)):
        raise TypeError(
            f"prompts must be a string, a list of token ids, or a list of those, got {type(prompts).__name__}."
        )
    return bool(prompts) and isinstance(prompts[0], int)
