"""How an expert's status follows what is seen of it: a pure function, the heart of the controller.

registered -> starting -> verifying -> ready, from anywhere to failed and back, and by an operator
to draining and then parked or removed.
"""

from dataclasses import dataclass
from typing import Literal

from composer.state import Endpoint, ExpertRecord, ExpertState, ExpertStatus

RETRY_S = (2.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0)
"""Waits after failed verifications in a row."""

Act = Literal["wait", "verify", "remove"]


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of an expert at a moment.

    `problem`: why it can't be served at all; `let_go`: no gateway sends it requests any more, nor
    has any of it in flight.
    """

    record: ExpertRecord
    status: ExpertStatus | None = None
    endpoint: Endpoint | None = None
    problem: str = ""
    let_go: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """The status that follows, and what must be done for the one after it."""

    status: ExpertStatus
    act: Act = "wait"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a verification found. `busy`: the engine had no room for it, which says little."""

    reason: str = ""
    busy: bool = False

    @property
    def good(self) -> bool:
        return not self.reason


def advance(seen: Seen, now: float, drain_s: float) -> Step:
    """The next step of an expert; without a change its status is the very same."""
    status = seen.status or ExpertStatus(state="registered", since=now)
    if seen.record.removing or seen.record.drained:
        return _drain(seen, status, now, drain_s)
    if seen.problem:
        return Step(_to(status, "failed", now, seen.problem))
    if seen.record.spec.kind == "null":
        return Step(_to(status, "ready", now))
    if status.state in ("draining", "parked"):
        status = _to(status, "registered", now)
    return _towards_ready(seen.record.spec.id, status, seen.endpoint, now)


def after_verification(
    status: ExpertStatus, finding: Finding, life: str, now: float
) -> ExpertStatus:
    """The status after a verification in the engine's `life`; unchanged if nobody waits for it."""
    if status.state not in ("verifying", "ready"):
        return status
    if finding.good:
        ready = _to(status, "ready", now)
        return ready.model_copy(update={"failures": 0, "retry_at": 0.0, "life": life})
    wait = RETRY_S[min(status.failures, len(RETRY_S) - 1)]
    proven_and_busy = status.state == "ready" and finding.busy
    after = status if proven_and_busy else _to(status, "failed", now, finding.reason)
    update = {"failures": status.failures + 1, "retry_at": now + wait}
    return after.model_copy(update=update if proven_and_busy else update | {"life": life})


def asked_again(status: ExpertStatus | None, now: float) -> ExpertStatus:
    """The status of an expert that an operator wants to be verified now; a ready one goes on
    answering meanwhile."""
    fresh = {"failures": 0, "retry_at": 0.0, "life": ""}
    if status is None:
        return ExpertStatus(state="registered", since=now)
    if status.state in ("failed", "registered", "starting"):
        return _to(status, "registered", now).model_copy(update=fresh)
    return status.model_copy(update=fresh)


def _drain(seen: Seen, status: ExpertStatus, now: float, drain_s: float) -> Step:
    removing = seen.record.removing
    reason = "it is being removed" if removing else "an operator took it out of rotation"
    if status.state == "parked":
        return Step(status, "remove" if removing else "wait")
    if status.state != "draining":
        return Step(_to(status, "draining", now, reason))
    if not seen.let_go and now - status.since < drain_s:
        return Step(_to(status, "draining", now, reason))
    if removing:
        return Step(status, "remove")
    return Step(_to(status, "parked", now, reason))


def _towards_ready(
    expert: str, status: ExpertStatus, endpoint: Endpoint | None, now: float
) -> Step:
    if endpoint is None:
        return Step(_to(status, "starting", now, "its engine is not running yet"))
    if endpoint.state == "failed":
        return Step(_to(status, "failed", now, f"its engine failed: {endpoint.reason}"))
    if endpoint.state == "starting":
        return Step(_to(status, "starting", now, endpoint.reason))
    if expert in endpoint.refused:
        return Step(_to(status, "failed", now, endpoint.refused[expert]))
    if endpoint.serves is not None and expert not in endpoint.serves:
        return Step(_to(status, "starting", now, "its engine is starting anew with it"))
    if endpoint.state == "unresponsive":
        # It may be only slow: gateways pass over it meanwhile, and it is ended if it is a hang.
        return Step(status)
    same_life = status.life == endpoint.life
    if status.state == "ready":
        due = not same_life and now >= status.retry_at
        return Step(status, "verify" if due else "wait")
    if status.state == "failed" and same_life and now < status.retry_at:
        return Step(status)
    return Step(_to(status, "verifying", now), "verify")


def _to(status: ExpertStatus, state: ExpertState, now: float, reason: str = "") -> ExpertStatus:
    if status.state == state and status.reason == reason:
        return status
    since = status.since if status.state == state else now
    return status.model_copy(update={"state": state, "reason": reason, "since": since})
