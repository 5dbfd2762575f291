"""Router artefacts: the same bytes from the same data, and nothing but data when loaded."""

import json
from pathlib import Path

import numpy as np
import pytest

from experts.errors import ArtefactError
from routers.artefact import ARRAYS, MANIFEST, load_artefact, save_artefact
from routers.category import linear_category_router
from routers.mapping import Mapping
from routers.two_step import TwoStepRouter

ENCODER = "encoder:abc"


def router() -> TwoStepRouter:
    generator = np.random.default_rng(0)
    anchors = generator.normal(size=(5, 4)).astype(np.float32)
    return TwoStepRouter(
        linear_category_router(
            categories=("a", "b"),
            coefficients=generator.normal(size=(2, 4)).astype(np.float32),
            intercepts=np.zeros(2, np.float32),
            temperature=1.5,
            anchors=anchors / np.linalg.norm(anchors, axis=1, keepdims=True),
            min_probability=0.4,
            min_similarity=0.1,
        ),
        Mapping(("a", "b"), ("x", "y", "z"), generator.random((2, 3)), generator.random(3)),
    )


def saved(folder: Path) -> Path:
    save_artefact(folder, router(), name="auto", encoder=ENCODER)
    return folder


def test_loaded_router_scores_like_the_saved_one(tmp_path: Path) -> None:
    artefact = load_artefact(saved(tmp_path / "a"))
    embedding = np.array([1, 0, 0, 0], np.float32)
    assert artefact.router.score(embedding, "") == router().score(embedding, "")


def test_the_same_router_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = saved(tmp_path / "a"), saved(tmp_path / "b")
    for file in (MANIFEST, ARRAYS):
        assert (first / file).read_bytes() == (second / file).read_bytes()
    assert load_artefact(first).version == load_artefact(second).version


def test_another_encoder_is_refused(tmp_path: Path) -> None:
    artefact = load_artefact(saved(tmp_path / "a"))
    artefact.require_encoder(ENCODER, 4)
    for encoder, dimension in ((ENCODER, 5), ("other", 4)):
        with pytest.raises(ArtefactError, match="train again"):
            artefact.require_encoder(encoder, dimension)


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / ARRAYS).write_bytes(b"\x80\x04\x95"),
        lambda f: (f / ARRAYS).unlink(),
        lambda f: (f / MANIFEST).write_text("{}"),
        lambda f: (f / MANIFEST).write_text("not json"),
        lambda f: edit(f, schema_version=99),
        lambda f: edit(f, experts=["x"]),
        lambda f: edit(f, dimension=7),
    ],
)
def test_damaged_artefact_is_refused(tmp_path: Path, damage: object) -> None:
    folder = saved(tmp_path / "a")
    damage(folder)  # type: ignore[operator]
    with pytest.raises(ArtefactError):
        load_artefact(folder)


def edit(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | changes))


def test_a_folder_that_is_no_artefact_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ArtefactError, match="other files"):
        save_artefact(tmp_path / "mine", router(), name="auto", encoder=ENCODER)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
