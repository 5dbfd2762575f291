"""Datasets, trainings and versions of compositions as the control plane shows them.

Where files stand on this host is nothing that a client can use: it is left out.
"""

from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from composer.compositions import Composition
from composer.state import CompositionVersion, DatasetRecord, LiveRecord, TrainingRecord


class DatasetView(DatasetRecord):
    """Labelled task data: what is in it and where it came from. `categories` and `experts` count
    prompts and outcomes by name, `means` holds the mean score of each expert and what its answers
    took; `bad_lines` are the first of the `n_bad` lines that could not be read."""

    object: Literal["composer.dataset"] = "composer.dataset"
    file: str = Field(default="", exclude=True)

    @classmethod
    def of(cls, record: DatasetRecord) -> Self:
        return cls.model_validate(record.model_dump())


class DatasetList(BaseModel):
    """Datasets, newest first."""

    object: Literal["list"] = "list"
    data: list[DatasetView]


class TrainingView(TrainingRecord):
    """A training job. `experts` empty: all that have outcomes. At the end `version` is what it
    made and `report` its held-out figures, or `error` says why there are none."""

    object: Literal["composer.training"] = "composer.training"

    @classmethod
    def of(cls, record: TrainingRecord) -> Self:
        return cls.model_validate(record.model_dump())


class TrainingList(BaseModel):
    """Trainings, newest first."""

    object: Literal["list"] = "list"
    data: list[TrainingView]


class VersionView(CompositionVersion):
    """An immutable version of a composition. `summary` holds the figures of its training report,
    `training` is the job that made it."""

    artefact: str = Field(default="", exclude=True)

    @classmethod
    def of(cls, version: CompositionVersion) -> Self:
        return cls.model_validate(version.model_dump())


class LiveView(BaseModel):
    """What is live of a composition, and the versions that were before, newest first."""

    object: Literal["composer.composition"] = "composer.composition"
    name: str
    live: VersionView | None
    former: tuple[str, ...]
    changed_at: float | None

    @classmethod
    def fields_of(cls, name: str, live: LiveRecord | None) -> dict[str, Any]:
        if live is None:
            return {"name": name, "live": None, "former": (), "changed_at": None}
        return {
            "name": name,
            "live": VersionView.of(live.current),
            "former": live.former,
            "changed_at": live.changed_at,
        }


class CompositionSummary(LiveView):
    """A composition in a list; `versions` is how many it has."""

    versions: int

    @classmethod
    def of(cls, found: Composition) -> Self:
        fields = cls.fields_of(found.name, found.live)
        return cls.model_validate({**fields, "versions": len(found.versions)})


class CompositionList(BaseModel):
    """Compositions by name."""

    object: Literal["list"] = "list"
    data: list[CompositionSummary]


class CompositionView(LiveView):
    """A composition with its versions, newest first."""

    versions: list[VersionView]

    @classmethod
    def of(cls, found: Composition) -> Self:
        fields = cls.fields_of(found.name, found.live)
        versions = [VersionView.of(version) for version in found.versions]
        return cls.model_validate({**fields, "versions": versions})


class WorkersServing(BaseModel):
    """How many gateway workers there are, and how many serve the change already."""

    total: int
    current: int


class ChangeView(LiveView):
    """A composition after a change of what is live."""

    workers: WorkersServing
