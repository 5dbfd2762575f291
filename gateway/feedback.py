"""`POST /v1/feedback`: what a client thought of an answer."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from composer.config import Limits, Timeouts
from composer.state import State
from composer.stats import give_feedback
from gateway.asgi import Receive, Scope, Send, read_body, send_json
from gateway.auth import LOCAL, PRINCIPAL
from gateway.bodies import parse_json, validate
from gateway.metrics import Metrics


class FeedbackRequest(BaseModel):
    """`decision` is the id from the answer's `x-composer-decision` header."""

    model_config = ConfigDict(extra="forbid", strict=True)

    decision: str = Field(min_length=1, max_length=128)
    score: Annotated[float, Field(ge=0, le=1)]
    comment: str = Field(default="", max_length=2000)


class FeedbackEndpoint:
    """Answers once the feedback is stored."""

    def __init__(self, state: State, metrics: Metrics, limits: Limits, timeouts: Timeouts) -> None:
        self._state = state
        self._metrics = metrics
        self._limits = limits
        self._timeouts = timeouts

    async def __call__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        body = await read_body(scope, receive, self._limits, self._timeouts)
        request = validate(FeedbackRequest, parse_json(body))
        stored = await give_feedback(
            self._state,
            request.decision,
            request.score,
            request.comment,
            scope.get(PRINCIPAL, LOCAL).key,
        )
        self._metrics.feedback(stored["expert"], request.score)
        await send_json(send, stored, [(b"x-request-id", request_id.encode())])
