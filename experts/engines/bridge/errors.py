"""Errors as the OpenAI API tells them; what LiteLLM raises, mapped to statuses."""

from typing import Any

import litellm

MAX_MESSAGE = 2000
MAX_RETRY_AFTER_S = 3600.0


class BridgeError(Exception):
    """What a client is told; `retry_after_s` where trying again may help."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code or _CODES.get(status, "provider_error")
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": "rate_limit_error" if self.status == 429 else kind,
                "param": self.param,
                "code": self.code,
            }
        }


_CODES = {
    400: "invalid_request",
    401: "invalid_api_key",
    403: "permission_denied",
    404: "model_not_found",
    413: "request_too_large",
    429: "rate_limited",
    504: "timeout",
}

_TOO_LONG = "context_length_exceeded"

# The first that fits; subclasses stand before what they derive from.
_STATUSES: tuple[tuple[type[BaseException], int, str | None], ...] = (
    (litellm.ContextWindowExceededError, 400, _TOO_LONG),
    (litellm.ContentPolicyViolationError, 400, "content_filter"),
    (litellm.AuthenticationError, 401, None),
    (litellm.PermissionDeniedError, 403, None),
    (litellm.NotFoundError, 404, None),
    (litellm.RateLimitError, 429, None),
    (litellm.Timeout, 504, None),
    (litellm.BadRequestError, 400, None),
    (litellm.UnprocessableEntityError, 400, None),
    (litellm.ServiceUnavailableError, 503, "provider_unavailable"),
    (litellm.APIConnectionError, 502, "provider_unreachable"),
    (litellm.InternalServerError, 502, None),
    (litellm.APIError, 502, None),
)


def bridge_error(error: Exception, key: str | None) -> BridgeError:
    """What an error of LiteLLM means for the client. `key` is kept out of what is said."""
    if isinstance(error, BridgeError):
        return error
    known = next((entry for entry in _STATUSES if isinstance(error, entry[0])), None)
    if known is None:
        # Its text may hold anything, addresses and keys included.
        return BridgeError(502, f"LiteLLM failed ({type(error).__name__})")
    _, status, code = known
    message = str(getattr(error, "message", "") or type(error).__name__)
    if key:
        message = message.replace(key, "[key]")
    if status == 401:
        # Providers quote parts of the key that they refuse.
        message = "the provider refused the key" if key else "the provider asks for a key"
    if status == 400 and _TOO_LONG in message + str(getattr(error, "code", "")):
        code = _TOO_LONG
    param = getattr(error, "param", None)
    return BridgeError(
        status,
        message[:MAX_MESSAGE],
        code=code,
        param=param if isinstance(param, str) else None,
        retry_after_s=_retry_after(error),
    )


def _retry_after(error: Exception) -> float | None:
    headers = getattr(error, "litellm_response_headers", None) or {}
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds <= MAX_RETRY_AFTER_S else None
