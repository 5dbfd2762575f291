"""`Outcome`: what is known of a request once it has been answered, or has failed."""

from dataclasses import dataclass
from typing import Literal, Protocol

from routers.types import Decision

Status = Literal["ok", "error", "cancelled"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """`expert` is the one that answered (None: nobody did); times in milliseconds from the
    request's arrival; `failed` names the experts that were tried before, with the reason."""

    decision_id: str
    expert: str | None
    status: Status
    http_status: int
    failed: tuple[tuple[str, str], ...] = ()
    first_token_ms: float | None = None
    total_ms: float = 0.0
    streamed: bool = False
    error: str | None = None

    @property
    def attempts(self) -> int:
        """Experts that were asked, the one that answered among them."""
        return len(self.failed) + (self.expert is not None)


class OutcomeSink(Protocol):
    """Takes what happened. Must neither block nor raise."""

    def record(self, decision: Decision, outcome: Outcome) -> None: ...
