"""The OpenAI request bodies that this engine takes, and the errors it answers with.

Types are strict and unknown fields are refused by name: a parameter that would be ignored changes
answers silently. Fields that only matter to OpenAI's own bookkeeping are accepted.
"""

from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

_MAX_MESSAGES = 1024
_MAX_STOPS = 4
_MAX_STOP_CHARS = 512
_MAX_BIASES = 1024
_MAX_EXPERTS = 256


class ApiError(Exception):
    """An answer in OpenAI's error shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> bytes:
        """The JSON of the answer."""
        return orjson.dumps({"error": self.fields()})

    def fields(self) -> dict[str, str | None]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return {"message": self.message, "type": kind, "param": self.param, "code": self.code}


def _unsupported(what: str) -> PydanticCustomError:
    return PydanticCustomError("unsupported", "{what} is not supported here", {"what": what})


def _text_of(content: Any) -> Any:
    """Message content as one string: it may come as a list of text parts."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise _unsupported(f"content part of type {kind!r}")
        if not isinstance(part.get("text"), str):
            raise PydanticCustomError("string_type", "a text part must have a string `text`")
        texts.append(part["text"])
    return "\n".join(texts)


def _stop_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _only(*allowed: Any) -> BeforeValidator:
    """Accept a field whose effect is not implemented only where it asks for no effect."""

    def check(value: Any) -> Any:
        if not any(value == a and type(value) is type(a) for a in (None, *allowed)):
            raise _unsupported("this value")
        return value

    return BeforeValidator(check)


StopText = Annotated[str, Field(min_length=1, max_length=_MAX_STOP_CHARS)]
TokenKey = Annotated[str, Field(pattern=r"^\d{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class StreamOptions(_Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Message(_Strict):
    """One turn; `developer` is the newer name of `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text_of)]
    name: str | None = None
    refusal: Annotated[None, _only()] = None
    tool_calls: Annotated[Any, _only([])] = None
    function_call: Annotated[Any, _only()] = None
    audio: Annotated[Any, _only()] = None


class MixerArguments(_Strict):
    """A request's view of a mixer's experts, under the names that our vLLM plug-in takes too."""

    mixer_prior: list[float] | None = Field(default=None, max_length=_MAX_EXPERTS)
    mixer_mask: list[float] | None = Field(default=None, max_length=_MAX_EXPERTS)


class GenerationBody(_Strict):
    """What chat and plain completions share."""

    model: str = Field(min_length=1, max_length=256)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=1_000_000)
    min_p: float | None = Field(default=None, ge=0, le=1)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    logit_bias: dict[TokenKey, Bias] | None = Field(default=None, max_length=_MAX_BIASES)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Annotated[
        list[StopText] | None, Field(max_length=_MAX_STOPS), BeforeValidator(_stop_list)
    ] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    n: Annotated[int | None, _only(1)] = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: Annotated[bool | None, _only(False)] = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    vllm_xargs: MixerArguments | None = None
    # Nothing is cached across requests here.
    cache_salt: str | None = Field(default=None, max_length=128)


class ChatBody(GenerationBody):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=_MAX_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    response_format: Annotated[Any, _only({"type": "text"})] = None
    logprobs: Annotated[Any, _only(False)] = None
    top_logprobs: Annotated[Any, _only(0)] = None
    tools: Annotated[Any, _only([])] = None
    tool_choice: Annotated[Any, _only("none", "auto")] = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[Any, _only([])] = None
    function_call: Annotated[Any, _only("none", "auto")] = None
    modalities: Annotated[Any, _only(["text"])] = None
    audio: Annotated[Any, _only()] = None


class CompletionBody(GenerationBody):
    """`POST /v1/completions`; the prompt is one string."""

    prompt: str
    echo: Annotated[Any, _only(False)] = None
    suffix: Annotated[Any, _only()] = None
    best_of: Annotated[Any, _only(1)] = None
    logprobs: Annotated[Any, _only()] = None


Body = TypeVar("Body", bound=GenerationBody)


def parse_body(kind: type[Body], raw: bytes) -> Body:
    """Validate a request body; raises `ApiError` 400 naming the first field that is wrong."""
    try:
        body = kind.model_validate_json(raw)
    except ValidationError as error:
        raise _bad_request(error) from error
    if body.stream_options is not None and not body.stream:
        raise ApiError(
            400, "stream_options is only allowed when stream is true", param="stream_options"
        )
    return body


def _bad_request(error: ValidationError) -> ApiError:
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ".".join(str(part) for part in problem["loc"]) or None
    match problem["type"]:
        case "json_invalid":
            return ApiError(400, f"the body is not valid JSON: {problem['msg']}")
        case "extra_forbidden":
            message = f"{param} is not supported by this engine: leave it out"
            return ApiError(400, message, param=param, code="unsupported_parameter")
        case "unsupported":
            message = f"{param}: {problem['msg']}"
            return ApiError(400, message, param=param, code="unsupported_value")
        case "missing":
            return ApiError(
                400, f"{param} is required", param=param, code="missing_required_parameter"
            )
    return ApiError(400, f"{param}: {problem['msg']}", param=param, code="invalid_value")
