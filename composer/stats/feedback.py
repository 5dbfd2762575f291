"""Feedback on an answer: kept with its decision, counted where the decision was counted."""

import asyncio
import time
from typing import Any

import orjson

from composer.state import State
from composer.stats.cells import CATEGORY, COMPOSITION, EXPERT, TOTAL
from composer.stats.decisions import Decisions
from composer.stats.keys import FEEDBACK, INDEX, MINUTE
from composer.stats.scripts import GIVE_FEEDBACK
from experts.errors import NotFound
from routers.types import DIRECT

PATIENCE_S = 1.5
"""A decision shows up when the worker that took it has committed it."""

_POLL_S = 0.1


async def give_feedback(
    state: State, decision_id: str, score: float, comment: str, key: str
) -> dict[str, Any]:
    """Store feedback of `score` in [0, 1]; it replaces what was given for the same decision.

    Raises:
        NotFound: there is no such decision.
        StateUnavailable: it is not stored.
    """
    decision = await _wait_for(state, decision_id)
    now = time.time()
    millionths = round(score * 1e6)
    stored = {
        "score": score,
        "millionths": millionths,
        "comment": comment,
        "at": round(now, 3),
        "key": key,
    }
    groups = [
        TOTAL,
        f"{EXPERT}{decision['answered_by'] or decision['expert']}",
        f"{CATEGORY}{decision['category']}",
        f"{COMPOSITION}{decision['composition'] or DIRECT}",
    ]
    connection = state.connection
    script = connection.redis.register_script(GIVE_FEEDBACK)
    arguments = [
        decision_id,
        orjson.dumps(stored).decode(),
        str(millionths),
        str(int(decision["at"] // MINUTE)),
        orjson.dumps(groups).decode(),
    ]
    if not await connection.call(script(keys=[INDEX, FEEDBACK], args=arguments)):
        raise NotFound(f"decision '{decision_id}' is no longer kept")
    return {
        "object": "composer.feedback",
        "decision": decision_id,
        "expert": decision["answered_by"] or decision["expert"],
        "score": score,
        "comment": comment,
        "at": stored["at"],
    }


async def _wait_for(state: State, decision_id: str) -> dict[str, Any]:
    decisions = Decisions(state)
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while True:
        try:
            return await decisions.get(decision_id)
        except NotFound:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(_POLL_S)
