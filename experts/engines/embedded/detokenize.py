"""From tokens back to text, piece by piece, without ever sending what may have to be taken back."""

from collections.abc import Sequence
from typing import Protocol

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# A character takes at most 4 bytes, thus 4 byte-level tokens: what is still broken after this many
# is no unfinished character but broken text, and is sent as it is.
_MAX_PENDING = 6


class Decoder(Protocol):
    """The part of `tokenizers.Tokenizer` that is needed here."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


class Detokenizer:
    """The text of one request as its tokens arrive; ends at the first stop string.

    A token's text depends on the tokens before it (spaces, characters of several tokens), so each
    new piece is the difference between decoding a short window with and without it. Held back are
    unfinished characters and whatever could be the beginning of a stop string.
    """

    def __init__(self, decoder: Decoder, stop: Sequence[str]) -> None:
        self._decoder = decoder
        self._stop = tuple(stop)
        self._window: list[int] = []
        self._decoded = 0
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that can be sent after this token; sets `stopped` when a stop string is met."""
        self._window.append(token)
        before = self._text(self._window[: self._decoded])
        text = self._text(self._window)
        pending = len(self._window) - self._decoded
        if text.endswith(_REPLACEMENT) and pending < _MAX_PENDING:
            return ""
        self._window = self._window[self._decoded :]
        self._decoded = len(self._window)
        return self._pass(text[len(before) :])

    def finish(self) -> str:
        """The rest at the end of a request that met no stop string."""
        before = self._text(self._window[: self._decoded])
        rest = self._pass(self._text(self._window)[len(before) :])
        if self.stopped:
            return rest
        rest, self._held = rest + self._held, ""
        return rest

    def _text(self, ids: list[int]) -> str:
        return self._decoder.decode(ids, skip_special_tokens=True) if ids else ""

    def _pass(self, new: str) -> str:
        if not self._stop:
            return new
        text = self._held + new
        cuts = [at for at in map(text.find, self._stop) if at >= 0]
        if cuts:
            self.stopped = True
            self._held = ""
            return text[: min(cuts)]
        hold = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
