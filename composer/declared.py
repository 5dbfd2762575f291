"""What the configuration declares, written to the shared state at every start.

The configuration wins over what is registered under the same id; what came by the API stays; what a
former configuration declared and this one does not is forgotten. A version that was promoted by
hand stays live until someone changes that by hand.
"""

import time
from collections.abc import Callable, Iterable

from composer.state import (
    CompositionVersion,
    ExpertRecord,
    LiveRecord,
    Snapshot,
    State,
)
from composer.state.store import version_key
from experts.spec import ExpertSpec

MAX_FORMER = 20
"""Versions that a rollback can go back to, one by one."""


async def declare(
    state: State,
    specs: Iterable[ExpertSpec],
    version: CompositionVersion,
    clock: Callable[[], float] = time.time,
) -> None:
    """Write the configured experts and the configured composition's version.

    Raises:
        StateUnavailable: nothing, or only a part that the next call completes, was written.
    """
    now = clock()
    known = await state.experts.all()
    declared = {spec.id: spec for spec in specs}
    records: dict[str, ExpertRecord | None] = {
        expert: None
        for expert, record in known.items()
        if record.source == "config" and expert not in declared
    }
    for expert, spec in declared.items():
        before = known.get(expert)
        records[expert] = ExpertRecord(
            spec=spec,
            source="config",
            registered_at=before.registered_at if before is not None else now,
            drained=before is not None and before.drained,
        )
    gone = {expert: None for expert, record in records.items() if record is None}
    await state.write([(state.experts, records), (state.statuses, gone)])
    await _declare_composition(state, version.model_copy(update={"created_at": now}))


async def restore(state: State, last: Snapshot) -> None:
    """Write again what gateways served from, where the shared state has lost it.

    What was written since stays as it is.

    Raises:
        StateUnavailable: nothing, or only a part that the next call completes, was written.
    """
    now = await state.snapshot()
    keys = {key.id: key for digest, key in last.keys.items() if digest not in now.keys}
    live = {
        name: LiveRecord(current=version, changed_at=version.created_at)
        for name, version in last.compositions.items()
        if name not in now.compositions
    }
    versions = {version_key(r.current.name, r.current.version): r.current for r in live.values()}
    await state.write(
        [
            (state.experts, {e: r for e, r in last.records.items() if e not in now.records}),
            (state.statuses, {e: s for e, s in last.statuses.items() if e not in now.statuses}),
            (state.endpoints, {n: e for n, e in last.endpoints.items() if n not in now.endpoints}),
            (state.keys, keys),
            (state.versions, versions),
            (state.live, live),
        ]
    )


async def _declare_composition(state: State, version: CompositionVersion) -> None:
    key = version_key(version.name, version.version)
    await state.versions.change(key, lambda known: known or version)
    await state.live.change(version.name, lambda live: _now_live(live, version))
    others = {
        name: None
        for name, live in (await state.live.all()).items()
        if live.current.source == "config" and name != version.name
    }
    if others:
        await state.live.put(others)


def _now_live(live: LiveRecord | None, version: CompositionVersion) -> LiveRecord:
    if live is None:
        return LiveRecord(current=version, changed_at=version.created_at)
    if live.current.source != "config":
        return live
    if live.current.version == version.version:
        same = live.current.model_copy(
            update={
                "artefact": version.artefact,
                "quality_weight": version.quality_weight,
                "experts": version.experts,
                "categories": version.categories,
            }
        )
        return live.model_copy(update={"current": same})
    return goes_live(live, version)


def goes_live(live: LiveRecord | None, version: CompositionVersion) -> LiveRecord:
    """The record after `version` was made live."""
    if live is None:
        return LiveRecord(current=version, changed_at=version.created_at)
    former = (live.current.version, *(v for v in live.former if v != version.version))
    return LiveRecord(current=version, former=former[:MAX_FORMER], changed_at=version.created_at)
