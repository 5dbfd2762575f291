"""Requests of the data plane: validated, bounded, and turned into a `RouteQuery`."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from experts.errors import InvalidRequest
from experts.spec import Capability, ExpertId
from routers.conversation import routing_text
from routers.types import Needs, Policy, RouteQuery

_NO_LIMITS = Policy()
MAX_MESSAGES = 4096
MAX_TEXT = 4 << 20
MAX_FIELDS = 128
CHARS_PER_TOKEN = 6
"""More characters per token than ordinary text has: the length in tokens is a lower bound, so no
expert is ruled out by a guess. The engine has the last word."""

R = TypeVar("R", bound=BaseModel)
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


ExpertIds = Annotated[list[ExpertId], Field(min_length=1, max_length=1024, fail_fast=True)]


class ComposerOptions(BaseModel):
    """The request's own policy: what it may spend and whether it wants the decision explained."""

    model_config = ConfigDict(extra="forbid", strict=True)

    max_params_b: float | None = Field(default=None, ge=0)
    max_price: float | None = Field(default=None, ge=0)
    max_latency_ms: float | None = Field(default=None, gt=0)
    quality_weight: float | None = Field(default=None, ge=0, le=1)
    experts: ExpertIds | None = None
    explain: bool = False


class StreamOptions(_Body):
    include_usage: bool | None = None


class ResponseFormat(_Body):
    type: str = Field(max_length=64)


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
Stops = Annotated[list[Text], Field(max_length=16, fail_fast=True)]
Objects = Annotated[list[dict[str, Any]], Field(max_length=1024, fail_fast=True)]


class ChatRequest(_Body):
    """`POST /v1/chat/completions`. Ranges are those of the OpenAI API."""

    model: str = Field(default="auto", min_length=1, max_length=256)
    messages: Messages
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    n: int | None = Field(default=None, ge=1, le=128)
    stop: Text | Stops | None = None
    seed: int | None = None
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    logprobs: bool | None = None
    tools: Objects | None = None
    functions: Objects | None = None
    response_format: ResponseFormat | None = None
    composer: ComposerOptions | None = None

    @property
    def explain(self) -> bool:
        return self.composer is not None and self.composer.explain

    def query(self) -> RouteQuery:
        """What routing sees: the last thing the user said, the needs, the policy.

        Raises:
            InvalidRequest: fields that contradict each other.
        """
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest(
                "'stream_options' is only allowed when 'stream' is true", param="stream_options"
            )
        return RouteQuery(
            text=text_of(self.messages),
            needs=needs(
                self.messages,
                self.max_completion_tokens or self.max_tokens,
                *self._capabilities(),
            ),
            policy=policy(self.composer),
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

    def query(self) -> RouteQuery:
        """
        Raises:
            InvalidRequest: not exactly one of `prompt` and `messages` is given.
        """
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("give either 'prompt' or 'messages'", param="prompt")
        messages = self.messages or [Message(role="user", content=self.prompt)]
        return RouteQuery(
            text=text_of(messages), needs=needs(messages), policy=policy(self.composer)
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


def parse_json(body: bytes) -> dict[str, Any]:
    """
    Raises:
        InvalidRequest: not UTF-8, not JSON, or not an object.
    """
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the request body is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise InvalidRequest("the request body must be a JSON object")
    return data


def validate(model: type[R], data: dict[str, Any]) -> R:
    """
    Raises:
        InvalidRequest: the first field that is wrong, and how.
    """
    _bound_fields(data)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in problem["loc"] if not _is_type_name(part))
        message = problem["msg"][:1].lower() + problem["msg"][1:]
        raise InvalidRequest(f"'{field}': {message}", param=field) from error


def _bound_fields(data: dict[str, Any]) -> None:
    """Every field beyond the known ones would cost an error object each."""
    for name, value in (("the request", data), ("'composer'", data.get("composer"))):
        if isinstance(value, dict) and len(value) > MAX_FIELDS:
            raise InvalidRequest(f"{name} has more than {MAX_FIELDS} fields")


def _is_type_name(part: str | int) -> bool:
    """Pydantic names the branch of a union in the path of an error; a client doesn't care."""
    return isinstance(part, str) and (
        part == "str" or part.startswith(("constrained-str", "list["))
    )
