"""`Stream`: the rest of a streamed answer, relayed event by event to its proper end."""

from collections.abc import AsyncIterator, Callable

from composer import sse
from composer.upstream import Reply, UpstreamFailure
from composer.usage import Meter

MAX_HEAD_BYTES = 1 << 20
"""What may arrive of a stream before its first token, and of one event before its end."""


class Stream:
    """The rest of a streamed answer. Must be closed, which also stops the engine's work.

    Relays whole events only, so that the error event after a break stands on lines of its own;
    `pending` is the beginning of an event that came with the first token.
    """

    def __init__(
        self,
        pending: bytes,
        chunks: AsyncIterator[bytes],
        reply: Reply,
        watch: sse.EndWatch,
        expert: str,
        meter: Meter,
        on_close: Callable[[], None],
    ) -> None:
        self.error: str | None = None
        self._pending = pending
        self._chunks = chunks
        self._reply = reply
        self._watch = watch
        self._expert = expert
        self._meter = meter
        self._on_close = on_close

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for data in self._chunks:
                self._watch.feed(data)
                whole, self._pending = sse.split_whole(self._pending + data)
                if whole and (passed := self._meter.pass_on(whole)):
                    yield passed
                if len(self._pending) > MAX_HEAD_BYTES:
                    raise UpstreamFailure("broken", "one event of its stream is too long")
            if self._pending and self._watch.ended:
                yield self._pending
        except UpstreamFailure as failure:
            self.error = failure.reason
        if self.error is None and not self._watch.ended:
            self.error = "its stream ended without [DONE]"
        if self.error is not None:
            message = f"the answer of expert '{self._expert}' broke off: {self.error}"
            yield sse.error_event(message, "expert_stream_broken")

    def close(self) -> None:
        """Call once, whatever became of the stream."""
        self._reply.close()
        self._on_close()
