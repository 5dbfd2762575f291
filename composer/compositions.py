"""Compositions and their immutable versions: which there are, which is live, going on and back."""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

from composer.config import Config
from composer.declared import goes_live
from composer.files import move_into_place
from composer.state import CompositionVersion, LiveRecord, State
from composer.state.records import VersionSource
from composer.state.store import version_key
from experts.errors import ArtefactError, Conflict, InvalidRequest, NotFound
from routers.artefact import MANIFEST, Artefact, load_artefact, summary_of


@dataclass(frozen=True, slots=True)
class EncoderIdentity:
    """What an artefact's router must have been trained on to be served here."""

    id: str
    dimension: int


@dataclass(frozen=True, slots=True)
class Composition:
    """`versions` are newest first; `live` is None for a name that was never promoted."""

    name: str
    live: LiveRecord | None
    versions: tuple[CompositionVersion, ...]


def artefacts_folder(config: Config) -> Path:
    return config.state_dir / "artefacts"


async def all_compositions(state: State) -> list[Composition]:
    versions, live = await state.versions.all(), await state.live.all()
    names = {version.name for version in versions.values()} | live.keys()
    return [_composition(name, live.get(name), versions.values()) for name in sorted(names)]


async def one_composition(state: State, name: str) -> Composition:
    """
    Raises:
        NotFound: the name has neither versions nor a live one.
    """
    live = await state.live.find(name)
    found = _composition(name, live, (await state.versions.all()).values())
    if live is None and not found.versions:
        raise NotFound(f"there is no composition '{name}'")
    return found


async def require_free_name(state: State, name: str) -> None:
    """A model's name must not mean both a composition and an expert.

    Raises:
        Conflict: an expert is called so.
    """
    if await state.experts.find(name) is not None:
        raise Conflict(f"'{name}' is an expert: choose another name for the composition")


async def promote(
    state: State,
    name: str,
    version: str,
    encoder: EncoderIdentity,
    clock: Callable[[], float] = time.time,
) -> LiveRecord:
    """Make a version live. Promoting the live one changes nothing.

    Raises:
        NotFound: there is no such version.
        ArtefactError: its artefact is gone, damaged, or made for another encoder.
        Conflict: none of its experts is registered any more, or its name is an expert's.
    """
    record = await _servable(state, name, version, encoder)

    def change(live: LiveRecord | None) -> LiveRecord:
        if live is not None and live.current.version == version:
            return live
        return goes_live(live, record).model_copy(update={"changed_at": clock()})

    return await state.live.change(name, change)


async def roll_back(
    state: State, name: str, encoder: EncoderIdentity, clock: Callable[[], float] = time.time
) -> LiveRecord:
    """Make the version live again that was before.

    Raises:
        NotFound: the composition is unknown.
        Conflict: nothing was live before, or someone else promoted meanwhile.
        ArtefactError: the former version can't be served; see `promote`.
    """
    live = await state.live.find(name)
    if live is None:
        raise NotFound(f"there is no live composition '{name}'")
    if not live.former:
        raise Conflict(f"nothing was live before version '{live.current.version}' of '{name}'")
    before, *older = live.former
    record = await _servable(state, name, before, encoder)

    def change(current: LiveRecord | None) -> LiveRecord:
        if current != live:
            raise Conflict(f"'{name}' was changed by someone else meanwhile: look, and try again")
        return LiveRecord(current=record, former=tuple(older), changed_at=clock())

    return await state.live.change(name, change)


async def delete_version(state: State, config: Config, name: str, version: str) -> None:
    """Forget a version that is not live; its artefact goes when nothing else refers to it.

    Raises:
        NotFound: there is no such version.
        Conflict: it is live.
    """
    record = await _find(state, name, version)

    def without(live: LiveRecord | None) -> LiveRecord:
        assert live is not None
        if live.current.version == version:
            raise Conflict(f"version '{version}' of '{name}' is live: promote another one first")
        return live.model_copy(update={"former": tuple(v for v in live.former if v != version)})

    if await state.live.find(name) is not None:
        await state.live.change(name, without)
    await state.versions.put({version_key(name, version): None})
    folder = Path(record.artefact)
    used = {other.artefact for other in (await state.versions.all()).values()}
    used |= {live.current.artefact for live in (await state.live.all()).values()}
    ours = folder.parent == artefacts_folder(config) and record.source != "config"
    if ours and record.artefact not in used:
        await asyncio.to_thread(rmtree, folder, ignore_errors=True)


async def keep_artefact(
    state: State,
    config: Config,
    staged: Path,
    name: str,
    encoder: EncoderIdentity,
    *,
    source: VersionSource,
    quality_weight: float,
    created_by: str = "",
    training: str | None = None,
    clock: Callable[[], float] = time.time,
) -> CompositionVersion:
    """Move a checked artefact to where versions stand; returns the version to be recorded.

    A version that is there already is returned as it is: the same content is the same version.

    Raises:
        ArtefactError: the artefact is damaged or made for another encoder.
        Conflict: the version is there with another weight.
    """
    artefact = await asyncio.to_thread(load_for, staged, encoder)
    known = await state.versions.find(version_key(name, artefact.version))
    if known is not None and known.quality_weight != quality_weight:
        raise Conflict(
            f"version '{known.version}' of '{name}' is there already, and weighs quality "
            f"{known.quality_weight:g}: versions don't change"
        )
    if known is not None and (Path(known.artefact) / MANIFEST).is_file():
        return known
    folder = artefacts_folder(config) / artefact.version
    await asyncio.to_thread(_place, staged, folder)
    return CompositionVersion(
        name=name,
        version=artefact.version,
        artefact=str(folder),
        quality_weight=quality_weight,
        source=source,
        created_at=clock(),
        created_by=created_by,
        training=training,
        experts=artefact.manifest.experts,
        categories=artefact.manifest.categories,
        summary=summary_of(artefact.manifest.report),
    )


async def require_experts(state: State, experts: Iterable[str]) -> None:
    """
    Raises:
        InvalidRequest: some are not registered.
    """
    missing = sorted(set(experts) - (await state.experts.all()).keys())
    if missing:
        raise InvalidRequest(
            f"not registered are the experts {', '.join(missing[:20])}: register them first",
            param="experts",
        )


def load_for(folder: Path, encoder: EncoderIdentity) -> Artefact:
    """Load an artefact that this installation can serve.

    Raises:
        ArtefactError: missing, damaged, or made for another encoder.
    """
    try:
        artefact = load_artefact(folder)
        artefact.require_encoder(encoder.id, encoder.dimension)
    except ArtefactError as error:
        # Where artefacts stand on this host is nothing that a client can use.
        told = error.message.replace(f"{folder}/", "").replace(str(folder), folder.name)
        raise ArtefactError(told, param=error.param) from error
    return artefact


def _composition(
    name: str, live: LiveRecord | None, versions: Iterable[CompositionVersion]
) -> Composition:
    own = (version for version in versions if version.name == name)
    return Composition(name, live, tuple(sorted(own, key=lambda v: v.created_at, reverse=True)))


async def _find(state: State, name: str, version: str) -> CompositionVersion:
    record = await state.versions.find(version_key(name, version))
    if record is None:
        raise NotFound(f"there is no version '{version}' of a composition '{name}'")
    return record


async def _servable(
    state: State, name: str, version: str, encoder: EncoderIdentity
) -> CompositionVersion:
    """The version, after a check that it can be served now."""
    record = await _find(state, name, version)
    await require_free_name(state, name)
    try:
        artefact = await asyncio.to_thread(load_for, Path(record.artefact), encoder)
    except ArtefactError as error:
        raise ArtefactError(
            f"version '{version}' of '{name}' can't be served: {error.message}", param="version"
        ) from error
    registered = await state.experts.all()
    if not any(expert in registered for expert in artefact.manifest.experts):
        raise Conflict(
            f"none of the experts of version '{version}' of '{name}' is registered any more"
        )
    return record


def _place(staged: Path, folder: Path) -> None:
    """The same name is the same content: what stands there whole may stay."""
    if (folder / MANIFEST).is_file():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    rmtree(folder, ignore_errors=True)
    move_into_place(staged, folder)
