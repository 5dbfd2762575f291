"""Router artefacts: a folder of data (JSON and safetensors) that can't run code when loaded.

`artefact.json` names the encoder, the experts and the thresholds; `router.safetensors` holds the
arrays. The same data and seed give the same bytes on one machine with the same versions.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from experts.errors import ArtefactError
from experts.spec import ExpertSpec
from routers.artefact_parts import RouterSettings, UnfitArrays, put_together, take_apart
from routers.two_step import Router, TwoStepRouter

MANIFEST = "artefact.json"
ARRAYS = "router.safetensors"

_FLAT_SETTINGS = ("temperature", "min_probability", "min_similarity")
"""Where schema 1 kept what schema 2 has under `router`."""


class Manifest(BaseModel):
    """`artefact.json`. Schema 1, a two-step router on embeddings alone, is read as well."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1, 2] = 2
    method: Literal["two-step", "auto"] = "two-step"
    name: str = Field(min_length=1, max_length=128)
    encoder: str
    dimension: int = Field(ge=1)
    categories: tuple[str, ...]
    experts: tuple[str, ...]
    specs: tuple[ExpertSpec, ...] = ()
    router: RouterSettings
    report: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_schema_1(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or raw.get("schema_version") != 1 or "router" in raw:
            return raw
        kept = {key: value for key, value in raw.items() if key not in _FLAT_SETTINGS}
        settings = {key: raw[key] for key in _FLAT_SETTINGS if key in raw}
        if "min_similarity" in settings:
            settings["min_familiarity"] = settings.pop("min_similarity")
        return {**kept, "router": settings}


@dataclass(frozen=True, slots=True)
class Artefact:
    """A trained router with all that is needed to use it. `version` is a hash of its content."""

    manifest: Manifest
    router: Router
    version: str

    def require_encoder(self, encoder_id: str, dimension: int) -> None:
        """Refuse an encoder other than the one that the router was trained on.

        Raises:
            ArtefactError: id or dimension differ.
        """
        if (encoder_id, dimension) != (self.manifest.encoder, self.manifest.dimension):
            raise ArtefactError(
                f"the router was trained on encoder '{self.manifest.encoder}' "
                f"({self.manifest.dimension} dimensions), this one is '{encoder_id}' "
                f"({dimension}): train again with `coe train`, or configure that encoder",
                param="encoder",
            )


def save_artefact(
    folder: Path,
    router: TwoStepRouter,
    *,
    name: str,
    encoder: str,
    specs: Sequence[ExpertSpec] = (),
    report: dict[str, Any] | None = None,
) -> str:
    """Write an artefact, whole or not at all; returns its version.

    Raises:
        ArtefactError: the folder holds something else, or can't be written.
    """
    settings, arrays = take_apart(router)
    manifest = Manifest(
        method="two-step" if router.text_features is None else "auto",
        name=name,
        encoder=encoder,
        dimension=router.dimension,
        categories=router.mapping.categories,
        experts=router.mapping.experts,
        specs=tuple(specs),
        router=settings,
        report=report or {},
    )
    if folder.exists() and {file.name for file in folder.iterdir()} - {MANIFEST, ARRAYS}:
        raise ArtefactError(f"{folder} holds other files than an artefact: choose another --out")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            save_file(
                {key: np.ascontiguousarray(value) for key, value in arrays.items()},
                staging / ARRAYS,
            )
            text = json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True)
            (staging / MANIFEST).write_text(text + "\n")
            staging.chmod(0o755)
            version = _version(staging)
            _put_in_place(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise ArtefactError(f"can't write {folder}: {error.strerror}") from error
    return version


def summary_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a training report that are worth keeping beside a version."""
    return {key: value for key, value in report.items() if isinstance(value, int | float | str)}


def _put_in_place(staging: Path, folder: Path) -> None:
    """Rename, with the former artefact set aside until the new one stands."""
    former = staging.with_name(f"{staging.name}-former")
    if folder.exists():
        os.replace(folder, former)
    os.replace(staging, folder)
    shutil.rmtree(former, ignore_errors=True)


def load_artefact(folder: Path) -> Artefact:
    """Load an artefact and check it whole.

    Raises:
        ArtefactError: missing, damaged, or of another schema.
    """
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        arrays = load_file(folder / ARRAYS)
        version = _version(folder)
    except OSError as error:
        raise ArtefactError(f"can't read the artefact {folder}: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtefactError(f"{folder / MANIFEST}: {where}: {first['msg']}") from error
    except SafetensorError as error:
        raise ArtefactError(f"{folder / ARRAYS} is damaged: {error}") from error
    try:
        router = put_together(
            manifest.router, arrays, manifest.categories, manifest.experts, manifest.dimension
        )
    except UnfitArrays as error:
        raise ArtefactError(f"{folder / ARRAYS}: {error}") from error
    return Artefact(manifest, router, version)


def _version(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in (MANIFEST, ARRAYS):
        digest.update((folder / file).read_bytes())
    return digest.hexdigest()[:12]
