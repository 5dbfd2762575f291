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
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from experts.errors import ArtefactError
from experts.spec import ExpertSpec
from routers.category import CategoryRouter
from routers.mapping import Mapping as ExpertMapping
from routers.two_step import Router, TwoStepRouter

SCHEMA = 1
MANIFEST = "artefact.json"
ARRAYS = "router.safetensors"


class Manifest(BaseModel):
    """`artefact.json`."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    method: Literal["two-step"] = "two-step"
    name: str = Field(min_length=1, max_length=128)
    encoder: str
    dimension: int = Field(ge=1)
    categories: tuple[str, ...]
    experts: tuple[str, ...]
    specs: tuple[ExpertSpec, ...] = ()
    temperature: float = Field(gt=0)
    min_probability: float
    min_similarity: float
    report: dict[str, Any] = Field(default_factory=dict)


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
    category_router, mapping = router.category_router, router.mapping
    manifest = Manifest(
        name=name,
        encoder=encoder,
        dimension=category_router.coefficients.shape[1],
        categories=category_router.categories,
        experts=mapping.experts,
        specs=tuple(specs),
        temperature=category_router.temperature,
        min_probability=category_router.min_probability,
        min_similarity=category_router.min_similarity,
        report=report or {},
    )
    arrays = {
        "coefficients": category_router.coefficients,
        "intercepts": category_router.intercepts,
        "anchors": category_router.anchors,
        "by_category": mapping.by_category,
        "overall": mapping.overall,
    }
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
    _check_arrays(manifest, arrays, folder)
    router = TwoStepRouter(
        CategoryRouter(
            categories=manifest.categories,
            coefficients=arrays["coefficients"],
            intercepts=arrays["intercepts"],
            temperature=manifest.temperature,
            anchors=arrays["anchors"],
            min_probability=manifest.min_probability,
            min_similarity=manifest.min_similarity,
        ),
        ExpertMapping(
            manifest.categories, manifest.experts, arrays["by_category"], arrays["overall"]
        ),
    )
    return Artefact(manifest, router, version)


def _check_arrays(manifest: Manifest, arrays: dict[str, Any], folder: Path) -> None:
    c, e, d = len(manifest.categories), len(manifest.experts), manifest.dimension
    expected: dict[str, tuple[int | None, ...]] = {
        "coefficients": (c, d),
        "intercepts": (c,),
        "anchors": (None, d),
        "by_category": (c, e),
        "overall": (e,),
    }
    if set(arrays) != set(expected):
        raise ArtefactError(f"{folder / ARRAYS} holds {sorted(arrays)}, not {sorted(expected)}")
    for name, shape in expected.items():
        array = arrays[name]
        fits = array.ndim == len(shape) and all(
            want is None or want == have for want, have in zip(shape, array.shape, strict=True)
        )
        if not fits or not np.isfinite(array).all():
            raise ArtefactError(
                f"{folder / ARRAYS}: '{name}' has shape {array.shape} or values that don't fit "
                f"{c} categories, {e} experts and {d} dimensions"
            )


def _version(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in (MANIFEST, ARRAYS):
        digest.update((folder / file).read_bytes())
    return digest.hexdigest()[:12]
