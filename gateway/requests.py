"""Requests of the data plane: validated, bounded, and turned into a `RouteQuery`."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from experts.errors import InvalidRequest
from experts.spec import Capability, ExpertId
from gateway.asgi import Scope, header
from gateway.auth import PRINCIPAL
from routers.conversation import routing_text
from routers.types import Interface, Needs, Policy, RouteQuery

_NO_LIMITS = Policy()
MAX_MESSAGES = 4096
MAX_TEXT = 4 << 20
MAX_INPUTS = 2048
MAX_TOKENS = 2**31 - 1
MAX_SESSION = 128
SESSION_HEADER = "x-composer-session"
CHARS_PER_TOKEN = 6
"""More characters per token than ordinary text has: the length in tokens is a lower bound, so no
expert is ruled out by a guess. The engine has the last word."""

Text = Annotated[str, Field(max_length=MAX_TEXT)]


class _Body(BaseModel):
    """Fields that Composer does not know are the engine's business, and are relayed."""

    model_config = ConfigDict(extra="allow", strict=True)


class ContentPart(_Body):
    type: str = Field(max_length=64)
    text: Text | None = None


ContentParts = Annotated[list[ContentPart], Field(max_length=1024, fail_fast=True)]


class Message(_Body):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | ContentParts | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content if part.text)
        return self.content or ""


Session = Annotated[str, Field(min_length=1, max_length=MAX_SESSION)]
ExpertIds = Annotated[list[ExpertId], Field(min_length=1, max_length=1024, fail_fast=True)]


class ComposerOptions(BaseModel):
    """The request's own policy: what it may spend and whether it wants the decision explained."""

    model_config = ConfigDict(extra="forbid", strict=True)

    max_params_b: float | None = Field(
        default=None, ge=0, description="No expert of more parameters (billions)."
    )
    max_price: float | None = Field(
        default=None, ge=0, description="No expert that would cost more for this request (USD)."
    )
    max_latency_ms: float | None = Field(
        default=None,
        gt=0,
        description="No expert whose first token takes longer, as measured lately.",
    )
    quality_weight: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="1 looks at quality alone, 0 at cost alone; unset: the composition's own.",
    )
    experts: ExpertIds | None = Field(default=None, description="Only these.")
    session: Session | None = Field(
        default=None, description="Requests of one session stay with one expert."
    )
    switch_gain: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="How much more another expert must be expected to score for the session to "
        "move to it; unset: the operator's setting.",
    )
    explain: bool = Field(default=False, description="Say why, in headers or in the answer.")


class StreamOptions(_Body):
    include_usage: bool | None = None


class ResponseFormat(_Body):
    type: str = Field(max_length=64)


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=128, fail_fast=True)]
NonEmptyText = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
NonEmptyTexts = Annotated[
    list[NonEmptyText], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)
]
Stops = Annotated[list[Text], Field(max_length=16, fail_fast=True)]
Objects = Annotated[list[dict[str, Any]], Field(max_length=1024, fail_fast=True)]


class RelayedRequest(_Body, ABC):
    """What the requests of all interfaces have in common."""

    interface: ClassVar[Interface]

    model: str = Field(default="auto", min_length=1, max_length=256)
    composer: ComposerOptions | None = None

    @property
    def explain(self) -> bool:
        return self.composer is not None and self.composer.explain

    @abstractmethod
    def query(self, session: str = "") -> RouteQuery:
        """What routing sees.

        Raises:
            InvalidRequest: fields that contradict each other.
        """

    def outgoing(self, payload: dict[str, Any]) -> dict[str, Any]:
        """The body for the expert: our own field is not its business."""
        payload.pop("composer", None)
        return payload


class _Generation(RelayedRequest):
    """What chats and plain completions have in common. Ranges are those of the OpenAI API."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    n: int | None = Field(default=None, ge=1, le=128)
    stop: Text | Stops | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)

    def _check(self) -> None:
        """
        Raises:
            InvalidRequest: fields that contradict each other.
        """
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest(
                "'stream_options' is only allowed when 'stream' is true", param="stream_options"
            )


class ChatRequest(_Generation):
    """`POST /v1/chat/completions`."""

    interface: ClassVar[Interface] = "chat"

    messages: Messages
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    logprobs: bool | None = None
    tools: Objects | None = None
    functions: Objects | None = None
    response_format: ResponseFormat | None = None

    def query(self, session: str = "") -> RouteQuery:
        """What routing sees: the last thing the user said, the needs, the policy.

        Raises:
            InvalidRequest: fields that contradict each other.
        """
        self._check()
        return RouteQuery(
            text=text_of(self.messages),
            needs=needs(
                self.messages,
                self.max_completion_tokens or self.max_tokens,
                *self._capabilities(),
            ),
            policy=policy(self.composer),
            session=session,
            switch_gain=gain_of(self.composer),
        )

    def _capabilities(self) -> Iterator[Capability]:
        if self.tools or self.functions:
            yield "tools"
        if self.response_format is not None and self.response_format.type != "text":
            yield "json"
        if self.logprobs:
            yield "logprobs"
        if self.n is not None and self.n > 1:
            yield "n"


class CompletionRequest(_Generation):
    """`POST /v1/completions`. Prompts are text: the experts' tokens differ."""

    interface: ClassVar[Interface] = "completions"

    prompt: Text | Texts
    logprobs: int | None = Field(default=None, ge=0, le=20)
    best_of: int | None = Field(default=None, ge=1, le=128)

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    def query(self, session: str = "") -> RouteQuery:
        """What routing sees: the prompts, the needs, the policy.

        Raises:
            InvalidRequest: fields that contradict each other.
        """
        self._check()
        return RouteQuery(
            text="\n".join(self.prompts),
            needs=Needs(
                context_tokens=max(map(len, self.prompts)) // CHARS_PER_TOKEN,
                output_tokens=self.max_tokens,
                capabilities=frozenset(self._capabilities()),
                interface="completions",
                prompts=len(self.prompts),
            ),
            policy=policy(self.composer),
            session=session,
            switch_gain=gain_of(self.composer),
        )

    def outgoing(self, payload: dict[str, Any]) -> dict[str, Any]:
        """A list of one prompt becomes that prompt: not every engine takes lists."""
        if len(self.prompts) == 1:
            payload["prompt"] = self.prompts[0]
        return super().outgoing(payload)

    def _capabilities(self) -> Iterator[Capability]:
        if self.logprobs is not None:
            yield "logprobs"
        if max(self.n or 1, self.best_of or 1) > 1:
            yield "n"


class EmbeddingsRequest(RelayedRequest):
    """`POST /v1/embeddings`. Inputs are text: the encoders' tokens differ."""

    interface: ClassVar[Interface] = "embeddings"

    input: NonEmptyText | NonEmptyTexts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    stream: Literal[False] | None = None

    @property
    def inputs(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input

    def query(self, session: str = "") -> RouteQuery:
        """What an expert that is named for embeddings is checked for."""
        longest = max(map(len, self.inputs))
        return RouteQuery(
            text="",
            needs=Needs(context_tokens=longest // CHARS_PER_TOKEN, interface="embeddings"),
            policy=policy(self.composer),
        )


class RouteRequest(BaseModel):
    """`POST /v1/route`: a prompt or messages, and the same options as a chat."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(default="auto", min_length=1, max_length=256)
    prompt: Text | None = None
    messages: Messages | None = None
    composer: ComposerOptions | None = None

    @property
    def explain(self) -> bool:
        return self.composer is not None and self.composer.explain

    def query(self, session: str = "") -> RouteQuery:
        """
        Raises:
            InvalidRequest: not exactly one of `prompt` and `messages` is given.
        """
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("give either 'prompt' or 'messages'", param="prompt")
        messages = self.messages or [Message(role="user", content=self.prompt)]
        return RouteQuery(
            text=text_of(messages),
            needs=needs(messages),
            policy=policy(self.composer),
            session=session,
            switch_gain=gain_of(self.composer),
        )


def needs(messages: list[Message], output_tokens: int | None = None, *more: Capability) -> Needs:
    """What an expert needs for these messages, besides the capabilities `more`."""
    vision = any(
        part.type not in ("text", "refusal")
        for message in messages
        if isinstance(message.content, list)
        for part in message.content
    )
    return Needs(
        context_tokens=sum(len(message.text) for message in messages) // CHARS_PER_TOKEN,
        output_tokens=output_tokens,
        capabilities=frozenset((*more, "vision") if vision else more),
    )


def text_of(messages: list[Message]) -> str:
    """What routing reads of a conversation."""
    return routing_text([(message.role, message.text) for message in messages])


def policy(options: ComposerOptions | None) -> Policy:
    if options is None:
        return _NO_LIMITS
    return Policy(
        max_params_b=options.max_params_b,
        max_price=options.max_price,
        max_latency_ms=options.max_latency_ms,
        quality_weight=options.quality_weight,
        experts=None if options.experts is None else frozenset(options.experts),
    )


def gain_of(options: ComposerOptions | None) -> float | None:
    """How much better another expert must be for a session to leave its own."""
    return None if options is None else options.switch_gain


def session_of(scope: Scope, options: ComposerOptions | None) -> str:
    """The session that a request names, in its body or else in a header; one key's sessions are
    not another's. Empty: none.

    Raises:
        InvalidRequest: the header is too long, or not printable ASCII.
    """
    name = options.session if options is not None else None
    if name is None:
        value = header(scope, SESSION_HEADER.encode())
        if value is None:
            return ""
        name = value.decode("latin-1")
        if not 0 < len(name) <= MAX_SESSION or not (name.isascii() and name.isprintable()):
            raise InvalidRequest(
                f"the header {SESSION_HEADER} takes 1 to {MAX_SESSION} printable characters",
                param=SESSION_HEADER,
            )
    return f"{scope[PRINCIPAL].key}\0{name}"
