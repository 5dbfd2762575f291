"""`Outcome`: what is known of a request once it has been answered, or has failed."""

from dataclasses import dataclass
from typing import Literal, Protocol

from routers.types import Decision, Interface

Status = Literal["ok", "error", "cancelled"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """`expert` is the one that answered (None: nobody did); times in milliseconds from the
    request's arrival; `failed` names the experts that were tried before, with the reason. Tokens
    are as the engine counted them (`estimated`: it did not, and streamed events were counted);
    `cost_usd` is their price; `key` the id of the API key used, `prompt` the routing text, kept
    only where the operator wants prompts stored."""

    decision_id: str
    expert: str | None
    status: Status
    http_status: int
    failed: tuple[tuple[str, str], ...] = ()
    first_token_ms: float | None = None
    total_ms: float = 0.0
    streamed: bool = False
    error: str | None = None
    interface: Interface = "chat"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    estimated: bool = False
    cost_usd: float = 0.0
    key: str = ""
    prompt: str = ""

    @property
    def attempts(self) -> int:
        """Experts that were asked, the one that answered among them."""
        return len(self.failed) + (self.expert is not None)


class OutcomeSink(Protocol):
    """Takes what happened. Must neither block nor raise."""

    def record(self, decision: Decision, outcome: Outcome) -> None: ...


class FanOut:
    """An `OutcomeSink` that tells several."""

    def __init__(self, *sinks: OutcomeSink) -> None:
        self._sinks = sinks

    def record(self, decision: Decision, outcome: Outcome) -> None:
        for sink in self._sinks:
            sink.record(decision, outcome)
