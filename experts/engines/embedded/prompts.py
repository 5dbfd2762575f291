"""From messages or text to prompt tokens, by the model's own tokenizer and chat template."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experts.engines.embedded.detokenize import Decoder
from experts.engines.embedded.protocol import ApiError, Message
from experts.engines.embedded.sampling import eos_tokens

# Longer texts are tokenised on a thread: a megabyte takes about a second.
_INLINE_CHARS = 8192


class Prompter:
    """The tokenizer of one base, for any thread."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        # The bare tokenizer: encoding with it changes no shared state, so threads don't collide.
        self._bare: Any = self._tokenizer.backend_tokenizer

    @property
    def decoder(self) -> Decoder:
        decoder: Decoder = self._bare
        return decoder

    def eos(self, generation_config: Any) -> frozenset[int]:
        """The tokens that end an answer."""
        return eos_tokens(generation_config.eos_token_id, self._tokenizer.eos_token_id)

    async def chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The tokens of a conversation, ready for the assistant's turn; raises `ApiError`."""
        return await self._encode(
            lambda: self._render(messages),
            special=False,
            size=sum(len(message.content) for message in messages),
        )

    async def text(self, prompt: str) -> tuple[int, ...]:
        """The tokens of a plain prompt, with whatever the tokenizer puts before every text."""
        return await self._encode(lambda: prompt, special=True, size=len(prompt))

    async def _encode(
        self, text: Callable[[], str], *, special: bool, size: int
    ) -> tuple[int, ...]:
        def work() -> tuple[int, ...]:
            return tuple(self._bare.encode(text(), add_special_tokens=special).ids)

        return work() if size <= _INLINE_CHARS else await asyncio.to_thread(work)

    def _render(self, messages: Sequence[Message]) -> str:
        from jinja2 import TemplateError

        if self._tokenizer.chat_template is None:
            raise ApiError(400, "this model has no chat template: use /v1/completions")
        turns = [
            {"role": "system" if m.role == "developer" else m.role, "content": m.content}
            for m in messages
        ]
        try:
            text: str = self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise ApiError(
                400, f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error
        return text
