"""Continuous batching: rows join and leave between steps, each with its adapter and sampling."""

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from experts.engines.embedded.attention import StepPlan, decode_groups, prefill_chunk
from experts.engines.embedded.cache import SlotCache
from experts.engines.embedded.detokenize import Decoder, Detokenizer
from experts.engines.embedded.lora import LoraBank
from experts.engines.embedded.mixers import MixerBank
from experts.engines.embedded.requests import FinishReason, Generation, Progress
from experts.engines.embedded.sampling import RowSampler, choose

log = logging.getLogger(__name__)

Delivery = tuple[Generation, Progress]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the batch: rows at once, tokens a row, prompt tokens a step."""

    max_running: int = 16
    max_context: int = 2048
    prefill_tokens: int = 256


class _Row:
    """A request that holds a slot. `cached` tokens of it lie in the cache; `pending` is the token
    that the next step decodes, None until the prompt is done."""

    def __init__(self, request: Generation, slot: int, decoder: Decoder) -> None:
        self.request = request
        self.slot = slot
        self.cached = 0
        self.generated = 0
        self.pending: int | None = None
        self.sampler = RowSampler(request.params, request.prompt)
        self.text = Detokenizer(decoder, request.params.stop)

    @property
    def prompt_left(self) -> int:
        return len(self.request.prompt) - self.cached


@dataclass(slots=True)
class _Chunk:
    row: _Row
    tokens: int

    @property
    def completes(self) -> bool:
        return self.tokens == self.row.prompt_left


class Scheduler:
    """Owns the model, the cache and the rows; used by one thread only.

    A step decodes one token of every running row and up to `prefill_tokens` tokens of joining
    prompts, first come first served, in one forward pass: running streams wait at most for one
    chunk, and a joining prompt shares the reading of the weights with them.
    """

    def __init__(
        self,
        model: Any,
        bank: LoraBank,
        mixers: MixerBank,
        cache: SlotCache,
        decoder: Decoder,
        eos: frozenset[int],
        limits: Limits,
    ) -> None:
        self._model = model
        self._bank = bank
        self._mixers = mixers
        self._cache = cache
        self._decoder = decoder
        self._eos = eos
        self._limits = limits
        self._waiting: deque[Generation] = deque()
        self._rows: list[_Row] = []

    @property
    def running(self) -> int:
        return len(self._rows)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        return not self._rows and not self._waiting

    @property
    def cache_bytes(self) -> int:
        return self._cache.nbytes

    def add(self, request: Generation) -> None:
        """Queue a request; the caller has checked that its prompt fits the context."""
        self._waiting.append(request)

    def step(self) -> list[Delivery]:
        """Run one token boundary; returns what each touched request is to hear."""
        deliveries = self._drop_cancelled()
        self._admit()
        if not self._rows:
            return deliveries
        decoding = sorted(
            (row for row in self._rows if row.pending is not None), key=lambda row: row.slot
        )
        chunks = self._next_chunks()
        try:
            logits, rows = self._forward(decoding, chunks)
            tokens = choose(logits, [row.sampler for row in rows])
        except Exception as error:
            # The rows that just joined are the likelier cause, so those that ran well before are
            # blamed only when there is nobody else. Their cached tokens are intact: a step writes
            # only past them.
            blamed = [chunk.row for chunk in chunks] or decoding
            log.exception("a step failed; %d of its requests are given up", len(blamed))
            message = f"the model failed on this request: {type(error).__name__}"
            return deliveries + [self._fail(row, message) for row in blamed]
        for row in decoding:
            row.cached += 1
        for chunk in chunks:
            chunk.row.cached += chunk.tokens
        deliveries += [self._deliver(row, token) for row, token in zip(rows, tokens, strict=True)]
        return deliveries

    def rest(self) -> None:
        """Give back the memory of a busy time; for when nothing is running."""
        self._cache.release()

    def abort_all(self, message: str) -> list[Delivery]:
        """Give up every request, waiting or running."""
        deliveries = [self._fail(row, message) for row in list(self._rows)]
        deliveries += [(request, Progress("", 0, "error", message)) for request in self._waiting]
        self._waiting.clear()
        return deliveries

    def _drop_cancelled(self) -> list[Delivery]:
        deliveries = [
            (row.request, self._leave(row, "cancelled"))
            for row in [row for row in self._rows if row.request.cancelled]
        ]
        if any(request.cancelled for request in self._waiting):
            deliveries += [
                (request, Progress("", 0, "cancelled"))
                for request in self._waiting
                if request.cancelled
            ]
            self._waiting = deque(r for r in self._waiting if not r.cancelled)
        return deliveries

    def _admit(self) -> None:
        taken = {row.slot for row in self._rows}
        free = (slot for slot in range(self._limits.max_running) if slot not in taken)
        while self._waiting and len(self._rows) < self._limits.max_running:
            self._rows.append(_Row(self._waiting.popleft(), next(free), self._decoder))

    def _next_chunks(self) -> list[_Chunk]:
        room = self._limits.prefill_tokens
        chunks: list[_Chunk] = []
        for row in self._rows:
            if row.pending is None and room:
                tokens = min(room, row.prompt_left)
                chunks.append(_Chunk(row, tokens))
                room -= tokens
        return chunks

    def _forward(
        self, decoding: Sequence[_Row], chunks: Sequence[_Chunk]
    ) -> tuple[Tensor, list[_Row]]:
        """Logits (rows, vocabulary) of the rows whose next token is due, and these rows."""
        rows = [*decoding, *(chunk.row for chunk in chunks)]
        lengths = [row.cached + 1 for row in decoding]
        ends = [chunk.row.cached + chunk.tokens for chunk in chunks]
        self._cache.reserve(1 + max(row.slot for row in rows), max([*lengths, *ends]))
        dtype = self._cache.geometry.dtype

        ids = [row.pending for row in decoding]
        positions = [row.cached for row in decoding]
        slots = [row.slot for row in decoding]
        adapters = [row.request.adapter for row in decoding]
        mixed = [row.request.mixed for row in decoding]
        due = list(range(len(decoding)))
        prefills = []
        for chunk, end in zip(chunks, ends, strict=True):
            row, first = chunk.row, len(ids)
            ids += row.request.prompt[row.cached : end]
            positions += range(row.cached, end)
            slots += [row.slot] * chunk.tokens
            adapters += [row.request.adapter] * chunk.tokens
            mixed += [row.request.mixed] * chunk.tokens
            prefills.append(prefill_chunk(first, chunk.tokens, row.slot, row.cached, dtype))
            if chunk.completes:
                due.append(len(ids) - 1)

        plan = StepPlan(
            slots=torch.tensor(slots),
            positions=torch.tensor(positions),
            groups=decode_groups(slots[: len(decoding)], lengths, dtype),
            chunks=tuple(prefills),
            keys=self._cache.keys,
            values=self._cache.values,
        )
        self._bank.select(adapters)
        self._mixers.select(mixed)
        output = self._model(
            input_ids=torch.tensor([ids]),
            position_ids=plan.positions.unsqueeze(0),
            use_cache=False,
            logits_to_keep=torch.tensor(due, dtype=torch.long),
            plan=plan,
        )
        return output.logits[0], [*decoding, *(c.row for c in chunks if c.completes)]

    def _deliver(self, row: _Row, token: int | None) -> Delivery:
        if token is None:
            self._cache.clear(row.slot)
            return self._fail(row, "the model computed values that are not finite")
        try:
            return row.request, self._advance(row, token)
        except Exception as error:
            log.exception("a token could not be turned into text")
            return self._fail(row, f"the text failed on this request: {type(error).__name__}")

    def _advance(self, row: _Row, token: int) -> Progress:
        row.generated += 1
        params = row.request.params
        if token in self._eos and not params.ignore_eos:
            return self._leave(row, "stop", row.text.finish())
        row.sampler.record(token)
        text = row.text.push(token)
        if row.text.stopped:
            return self._leave(row, "stop", text)
        # The last token allowed needs no place in the cache.
        full = row.cached + 1 >= self._limits.max_context
        if row.generated >= params.max_tokens or full:
            text += row.text.finish()
            return self._leave(row, "stop" if row.text.stopped else "length", text)
        row.pending = token
        return Progress(text, row.generated)

    def _fail(self, row: _Row, message: str) -> Delivery:
        self._rows.remove(row)
        return row.request, Progress("", row.generated, "error", message)

    def _leave(self, row: _Row, reason: FinishReason, text: str = "") -> Progress:
        self._rows.remove(row)
        return Progress(text, row.generated, reason)


def count_tokens(deliveries: Iterable[Delivery]) -> int:
    """How many tokens a step generated: one for every delivery that is no failure or farewell."""
    return sum(progress.finish not in ("cancelled", "error") for _, progress in deliveries)
