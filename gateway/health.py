"""Readiness: whether prompts can be answered now, and what is missing if not."""

from collections.abc import Mapping

import orjson

from composer.conditions import ConditionsTracker
from composer.snapshots import SnapshotKeeper


class Health:
    """Reads what the keeper and the conditions know."""

    def __init__(self, keeper: SnapshotKeeper, conditions: ConditionsTracker) -> None:
        self._keeper = keeper
        self._conditions = conditions

    @property
    def connected(self) -> bool:
        """Whether the shared state can be reached."""
        return self._keeper.connected

    def _state_of(self, expert: str, unavailable: Mapping[str, str]) -> str:
        if expert not in self._keeper.view.snapshot.experts:
            return "not registered"
        return unavailable.get(expert, "ready")

    def _is_answering(self, expert: str) -> bool:
        spec = self._keeper.view.snapshot.experts.get(expert)
        return spec is not None and spec.kind != "null"

    def report(self, *, whole: bool = True) -> tuple[int, bytes]:
        """Status and JSON body: 200 ready or degraded, 503 while nothing can be answered.

        The `whole` body has names in it, which are nothing for a stranger.
        """
        compositions = self._keeper.view.compositions
        unavailable = self._conditions.unavailable()
        experts = {
            expert: self._state_of(expert, unavailable)
            for c in compositions.values()
            for expert in c.experts
        }
        answering = [
            e for e, state in experts.items() if state == "ready" and self._is_answering(e)
        ]
        if not answering:
            status = "starting"
        elif not self.connected or any(state != "ready" for state in experts.values()):
            status = "degraded"
        else:
            status = "ready"
        body: dict[str, object] = {"status": status}
        if whole:
            body |= {
                "state": "connected" if self.connected else "away",
                "compositions": {name: c.record.version for name, c in compositions.items()},
                "experts": experts,
            }
        return (503 if status == "starting" else 200), orjson.dumps(body)
