"""Registering experts, taking them out of rotation, removing them: writes to the shared state.

What follows from a write is the controller's business (`composer.lifecycle`).
"""

import os
import time
from collections.abc import Callable, Mapping

from composer.admission import admit
from composer.config import Config
from composer.lifecycle.transitions import asked_again
from composer.state import ExpertRecord, ExpertStatus, LiveRecord, State
from experts.errors import ConfigError, Conflict
from experts.registry import inherit
from experts.spec import ExpertSpec

MAX_EXPERTS = 1000


class Registration:
    """The operations; each is acknowledged by returning, and stands in Redis by then."""

    def __init__(
        self,
        config: Config,
        state: State,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._state = state
        self._environ = environ
        self._clock = clock

    async def add(self, spec: ExpertSpec) -> ExpertRecord:
        """Register an expert. It takes no traffic before it was verified.

        Raises:
            Conflict: the id is taken, or there are too many experts.
            InvalidRequest, ConfigError: what is wrong with it; `param` names the field.
        """
        records, live = await self._state.experts.all(), await self._state.live.all()
        if spec.id in records:
            raise Conflict(f"there is an expert '{spec.id}' already", param="id")
        if spec.id in live or spec.id == self._config.composition.name:
            raise Conflict(f"'{spec.id}' is the name of a composition", param="id")
        if len(records) >= MAX_EXPERTS:
            raise Conflict(f"there are {MAX_EXPERTS} experts already: remove some")
        known = {expert: record.spec for expert, record in records.items()}
        if spec.base is not None and spec.base in records and records[spec.base].removing:
            raise ConfigError(f"'base': '{spec.base}' is being removed", param="base")
        resolved = inherit(spec, known)
        await admit(spec, resolved, known, self._config, self._environ)
        record = ExpertRecord(spec=spec, source="api", registered_at=self._clock())
        await self._state.experts.create(spec.id, record)
        return record

    async def drain(self, expert: str) -> ExpertRecord:
        """Take an expert out of rotation until it is resumed; what it is answering is finished."""

        def drained(record: ExpertRecord) -> ExpertRecord:
            return record.model_copy(update={"drained": True})

        return await self._state.experts.update(expert, drained)

    async def resume(self, expert: str) -> ExpertRecord:
        """Put a drained expert back into rotation, once it was verified again.

        Raises:
            Conflict: it is being removed.
        """

        def resumed(record: ExpertRecord) -> ExpertRecord:
            if record.removing:
                raise Conflict(f"expert '{expert}' is being removed")
            return record.model_copy(update={"drained": False})

        return await self._state.experts.update(expert, resumed)

    async def verify(self, expert: str) -> ExpertStatus:
        """Have an expert verified now, whatever is known of it. A ready one answers meanwhile."""
        await self._state.experts.get(expert)
        now = self._clock()
        return await self._state.statuses.change(expert, lambda known: asked_again(known, now))

    async def remove(self, expert: str, *, force: bool = False) -> ExpertRecord:
        """Drain an expert and forget it.

        Raises:
            Conflict: the configuration declares it, another expert stands on it, or a live
                composition uses it (unless `force`, which leaves the composition without it).
        """
        records = await self._state.experts.all()
        record = records.get(expert) or await self._state.experts.get(expert)
        if record.source == "config":
            raise Conflict(
                f"expert '{expert}' is declared by the configuration: remove it there, "
                f"or take it out of rotation (`coe experts drain {expert}`)"
            )
        standing = sorted(e for e, other in records.items() if other.spec.base == expert)
        if standing:
            raise Conflict(f"expert '{standing[0]}' stands on '{expert}': remove it first")
        using = users_of(expert, await self._state.live.all())
        if using and not force:
            raise Conflict(
                f"expert '{expert}' is in the live composition '{using[0]}': promote a version "
                "without it first, or force its removal"
            )

        def removing(known: ExpertRecord) -> ExpertRecord:
            return known.model_copy(update={"removing": True})

        return await self._state.experts.update(expert, removing)


def users_of(expert: str, live: Mapping[str, LiveRecord]) -> tuple[str, ...]:
    """Names of the live compositions that an expert is in."""
    return tuple(sorted(name for name, r in live.items() if expert in r.current.experts))
