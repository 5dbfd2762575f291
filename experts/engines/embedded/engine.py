"""The engine as one object: served names, admission, and a request's life on the event loop."""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from experts.engines.embedded.metrics import Metrics
from experts.engines.embedded.mixers import Mixed
from experts.engines.embedded.prompts import Prompter
from experts.engines.embedded.protocol import ApiError, ChatBody, CompletionBody, GenerationBody
from experts.engines.embedded.requests import (
    Generation,
    Progress,
    SamplingDefaults,
    SamplingParams,
)
from experts.engines.embedded.runner import Runner
from experts.errors import InvalidRequest
from experts.mixer.prior import check_mask, check_prior

_DEFAULT_MAX_TOKENS = 512


class ClientGone(Exception):
    """The client hung up before its answer was complete."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the engine admits."""

    max_running: int
    max_waiting: int
    max_context: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class ServedMixer:
    """A mixer's number in the `MixerBank`, and how many experts it mixes."""

    number: int
    experts: int


class Answer:
    """One request's progress as the event loop reads it; pieces that piled up come as one."""

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.request: Generation | None = None
        self._pieces: deque[Progress] = deque()
        self._arrived = asyncio.Event()
        self._gone = False

    def push(self, progress: Progress) -> None:
        self._pieces.append(progress)
        self._arrived.set()

    def hang_up(self) -> None:
        """Note that the client left: `next` raises, and the row leaves the batch."""
        self._gone = True
        self.cancel()
        self._arrived.set()

    def cancel(self) -> None:
        if self.request is not None:
            self.request.cancelled = True

    async def next(self) -> Progress:
        """Wait for more; raises `ClientGone` when nobody waits for it any longer."""
        await self._arrived.wait()
        if self._gone:
            raise ClientGone
        self._arrived.clear()
        pieces = list(self._pieces)
        self._pieces.clear()
        if len(pieces) == 1:
            return pieces[0]
        last = pieces[-1]
        text = "".join(piece.text for piece in pieces)
        return Progress(text, last.completion_tokens, last.finish, last.error)


class Engine:
    """Admits requests to the runner and answers which names it serves (name -> adapter number)."""

    def __init__(
        self,
        runner: Runner,
        prompter: Prompter,
        names: Mapping[str, int],
        bounds: Bounds,
        metrics: Metrics,
        defaults: SamplingDefaults,
        mixers: Mapping[str, ServedMixer] | None = None,
    ) -> None:
        self.runner = runner
        self.defaults = defaults
        self.names = dict(names)
        self._mixers = dict(mixers or {})
        self.bounds = bounds
        self.metrics = metrics
        self.draining = False
        self._prompter = prompter
        self._answers: set[Answer] = set()
        self._all_ended = asyncio.Event()
        self._all_ended.set()

    async def start_answer(self, body: ChatBody | CompletionBody) -> Answer:
        """Admit a request; raises `ApiError` where it can't be served."""
        adapter = self.names.get(body.model)
        if adapter is None:
            raise ApiError(
                404,
                f"the model {body.model!r} is not served here; GET /v1/models lists what is",
                code="model_not_found",
                param="model",
            )
        mixed = self._mixed(body)
        # Checked before the work of tokenising, and again after it: others may have come meanwhile.
        self._check_room()
        if isinstance(body, ChatBody):
            prompt = await self._prompter.chat(body.messages)
        else:
            prompt = await self._prompter.text(body.prompt)
        params = self._sampling(body, len(prompt))
        self._check_room()
        answer = Answer(len(prompt))
        answer.request = Generation(prompt, params, adapter, answer.push, mixed)
        self._answers.add(answer)
        self._all_ended.clear()
        self.metrics.accepted(len(prompt))
        self.runner.submit(answer.request)
        return answer

    def end_answer(self, answer: Answer) -> None:
        """Forget an answer, read to its end or given up; if its row still runs, it leaves."""
        answer.cancel()
        self._answers.discard(answer)
        if not self._answers:
            self._all_ended.set()

    async def drain(self, within_s: float) -> None:
        """Refuse what is new and let what runs come to its end; after that, give up the rest."""
        self.draining = True
        try:
            async with asyncio.timeout(within_s):
                await self._all_ended.wait()
        except TimeoutError:
            message = "the engine is shutting down and its time to finish ran out"
            for answer in list(self._answers):
                answer.cancel()
                answer.push(Progress("", 0, "error", message))

    def _check_room(self) -> None:
        if self.draining:
            self._refuse(503, "the engine is shutting down", "engine_draining")
        if not self.runner.healthy:
            self._refuse(503, "the engine is not able to work", "engine_unhealthy")
        if self.runner.in_flight >= self.bounds.max_running + self.bounds.max_waiting:
            message = f"{self.bounds.max_waiting} requests are waiting already; try again later"
            self._refuse(429, message, "engine_overloaded")

    def _refuse(self, status: int, message: str, code: str) -> None:
        self.metrics.rejected(code)
        raise ApiError(status, message, code=code, retry_after_s=1)

    def _mixed(self, body: GenerationBody) -> Mixed | None:
        """The request's view of a mixer's experts, checked."""
        mixer = self._mixers.get(body.model)
        extra = body.vllm_xargs
        if mixer is None:
            if extra is not None:
                message = f"{body.model!r} is no mixer: it takes no prior"
                raise ApiError(400, message, param="vllm_xargs", code="unsupported_parameter")
            return None
        prior = None if extra is None else extra.mixer_prior
        mask = None if extra is None else extra.mixer_mask
        try:
            if prior is not None:
                check_prior(prior, mixer.experts)
            if mask is not None:
                check_mask(mask, mixer.experts)
        except InvalidRequest as error:
            raise ApiError(
                400, error.message, param=f"vllm_xargs.{error.param}", code="invalid_value"
            ) from error
        return Mixed(
            mixer.number,
            None if prior is None else tuple(prior),
            None if mask is None else tuple(value == 1 for value in mask),
        )

    def _sampling(self, body: GenerationBody, prompt_tokens: int) -> SamplingParams:
        field = "messages" if isinstance(body, ChatBody) else "prompt"
        room = self.bounds.max_context - prompt_tokens
        if prompt_tokens == 0:
            raise ApiError(400, "the prompt is empty", param=field, code="invalid_value")
        if room < 1:
            raise ApiError(
                400,
                f"the prompt has {prompt_tokens} tokens; together with an answer it must fit "
                f"{self.bounds.max_context}",
                param=field,
                code="context_length_exceeded",
            )
        wanted = body.max_tokens
        if isinstance(body, ChatBody) and body.max_completion_tokens is not None:
            wanted = body.max_completion_tokens
        return SamplingParams(
            max_tokens=min(wanted or _DEFAULT_MAX_TOKENS, room),
            temperature=_or(body.temperature, self.defaults.temperature),
            top_p=_or(body.top_p, self.defaults.top_p),
            top_k=self._top_k(body.top_k),
            min_p=_or(body.min_p, 0.0),
            frequency_penalty=_or(body.frequency_penalty, 0.0),
            presence_penalty=_or(body.presence_penalty, 0.0),
            repetition_penalty=_or(body.repetition_penalty, self.defaults.repetition_penalty),
            logit_bias=self._biases(body.logit_bias or {}),
            seed=body.seed,
            stop=tuple(body.stop or ()),
            ignore_eos=body.ignore_eos,
        )

    def _top_k(self, asked: int | None) -> int:
        """-1 and 0 turn it off."""
        top_k = self.defaults.top_k if asked is None else max(asked, 0)
        return min(top_k, self.bounds.vocabulary)

    def _biases(self, biases: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
        pairs = tuple((int(token), bias) for token, bias in biases.items())
        for token, _ in pairs:
            if token >= self.bounds.vocabulary:
                raise ApiError(
                    400,
                    f"logit_bias: there is no token {token}; the last is "
                    f"{self.bounds.vocabulary - 1}",
                    param="logit_bias",
                    code="invalid_value",
                )
        return pairs


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
