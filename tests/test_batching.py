"""Micro-batching: what shares a pass, who hears of an error, and how much may wait."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from composer.batching import MicroBatcher
from experts.errors import NotReady, Overloaded


class GatedEncoder:
    """An encoder that the test lets run, and that remembers its batches.

    A text's vector is its length and its first character; a text that holds "bad" is an error.
    """

    id = "gated"
    dimension = 2

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.batches.append(list(texts))
        assert self.gate.wait(timeout=10)
        if any("bad" in text for text in texts):
            raise RuntimeError("no vector for this batch")
        return np.array([vector_of(text) for text in texts], dtype=np.float32).reshape(-1, 2)


def vector_of(text: str) -> tuple[float, float]:
    return float(len(text)), float(ord(text[0]) if text else 0)


@pytest.fixture
def encoder() -> GatedEncoder:
    return GatedEncoder()


@pytest.fixture
async def batcher(encoder: GatedEncoder) -> AsyncIterator[MicroBatcher]:
    async with MicroBatcher(encoder, max_batch=4, max_waiting=8) as batcher:
        yield batcher
        encoder.gate.set()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def busy(batcher: MicroBatcher, encoder: GatedEncoder) -> asyncio.Task[NDArray[np.float32]]:
    """Hold the encoder in a batch of its own until the gate opens."""
    encoder.gate.clear()
    task = asyncio.create_task(batcher.encode("first"))
    await until(lambda: len(encoder.batches) == 1)
    return task


async def test_requests_read_together_share_one_pass_when_the_encoder_is_free(
    batcher: MicroBatcher, encoder: GatedEncoder
) -> None:
    vectors = await asyncio.gather(*(batcher.encode(text) for text in ("a", "bb", "ccc")))

    assert encoder.batches == [["a", "bb", "ccc"]]
    assert [tuple(vector) for vector in vectors] == [vector_of(text) for text in ("a", "bb", "ccc")]


async def test_time_in_the_queue_is_told_when_the_encoder_is_busy(
    batcher: MicroBatcher, encoder: GatedEncoder
) -> None:
    first = await busy(batcher, encoder)
    second = asyncio.create_task(batcher.submit("second"))
    await asyncio.sleep(0.05)
    encoder.gate.set()
    await first

    waited = await second
    assert tuple(waited.vector) == vector_of("second")
    assert 40 < waited.queue_ms < 2000
    assert (await batcher.submit("alone")).queue_ms < 20


async def test_what_waits_forms_batches_of_bounded_size_when_the_encoder_is_busy(
    batcher: MicroBatcher, encoder: GatedEncoder
) -> None:
    first = await busy(batcher, encoder)
    rest = [asyncio.create_task(batcher.encode(text)) for text in "abcdef"]
    await asyncio.sleep(0)
    encoder.gate.set()
    await asyncio.gather(first, *rest)

    assert encoder.batches == [["first"], ["a", "b", "c", "d"], ["e", "f"]]


async def test_identical_texts_are_encoded_once_when_they_are_in_flight(
    batcher: MicroBatcher, encoder: GatedEncoder
) -> None:
    first = await busy(batcher, encoder)
    again = asyncio.create_task(batcher.encode("first"))
    twice = [asyncio.create_task(batcher.encode("same")) for _ in range(2)]
    await asyncio.sleep(0)
    encoder.gate.set()

    assert await first is await again
    assert await twice[0] is await twice[1]
    assert encoder.batches == [["first"], ["same"]]


async def test_a_shared_vector_cannot_be_changed(batcher: MicroBatcher) -> None:
    vector = await batcher.encode("a")

    with pytest.raises(ValueError, match="read-only"):
        vector[0] = 1.0


async def test_a_text_is_encoded_again_when_its_first_answer_is_out(
    batcher: MicroBatcher, encoder: GatedEncoder
) -> None:
    await batcher.encode("a")
    await batcher.encode("a")

    assert encoder.batches == [["a"], ["a"]]


async def test_overload_is_refused_when_as_many_wait_as_may(
    batcher: MicroBatcher, encoder: GatedEncoder
) -> None:
    first = await busy(batcher, encoder)
    rest = [asyncio.create_task(batcher.encode(text)) for text in "abcdefg"]
    await asyncio.sleep(0)

    with pytest.raises(Overloaded) as refusal:
        await batcher.encode("one too many")
    assert refusal.value.retry_after_s >= 1
    encoder.gate.set()
    await asyncio.gather(first, *rest)
    assert tuple(await batcher.encode("h")) == vector_of("h")


async def test_others_get_their_vectors_when_one_waiter_is_cancelled(
    batcher: MicroBatcher, encoder: GatedEncoder
) -> None:
    first = await busy(batcher, encoder)
    leaver, stayer = (asyncio.create_task(batcher.encode("same")) for _ in range(2))
    other = asyncio.create_task(batcher.encode("other"))
    await asyncio.sleep(0)
    leaver.cancel()
    first.cancel()
    await asyncio.wait([leaver, first])
    encoder.gate.set()

    assert tuple(await stayer) == vector_of("same")
    assert tuple(await other) == vector_of("other")
    assert leaver.cancelled()
    assert first.cancelled()


async def test_a_text_is_dropped_when_all_who_wait_for_it_are_cancelled(
    batcher: MicroBatcher, encoder: GatedEncoder
) -> None:
    first = await busy(batcher, encoder)
    unwanted = asyncio.create_task(batcher.encode("unwanted"))
    wanted = asyncio.create_task(batcher.encode("wanted"))
    await asyncio.sleep(0)
    unwanted.cancel()
    await asyncio.wait([unwanted])
    encoder.gate.set()
    await asyncio.gather(first, wanted)

    assert encoder.batches == [["first"], ["wanted"]]


async def test_an_error_reaches_its_own_batch_only_when_the_encoder_fails(
    batcher: MicroBatcher, encoder: GatedEncoder
) -> None:
    first = await busy(batcher, encoder)
    texts = ["a", "bad", "c", "d", "e", "f"]
    rest = [asyncio.create_task(batcher.encode(text)) for text in texts]
    await asyncio.sleep(0)
    encoder.gate.set()
    results = await asyncio.gather(first, *rest, return_exceptions=True)

    failed = [isinstance(result, RuntimeError) for result in results]
    assert failed == [False, True, True, True, True, False, False]


async def test_an_encoder_of_the_wrong_shape_is_an_error_and_not_a_wrong_vector(
    batcher: MicroBatcher, encoder: GatedEncoder
) -> None:
    encoder.dimension = 3

    with pytest.raises(ValueError, match=r"gave \(1, 2\) for 1 texts"):
        await batcher.encode("a")


async def test_closing_answers_what_waits_and_refuses_the_rest(encoder: GatedEncoder) -> None:
    batcher = MicroBatcher(encoder, max_batch=1)
    first = await busy(batcher, encoder)
    second = asyncio.create_task(batcher.encode("second"))
    await asyncio.sleep(0)
    closing = asyncio.create_task(batcher.close())
    await asyncio.sleep(0)
    with pytest.raises(NotReady):
        await batcher.encode("late")
    encoder.gate.set()
    await closing

    assert tuple(await first) == vector_of("first")
    assert tuple(await second) == vector_of("second")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("encoder")]


@settings(max_examples=30, deadline=None)
@given(
    texts=st.lists(st.text(alphabet="abc", max_size=3), max_size=40),
    cancelled=st.sets(st.integers(0, 39)),
    max_batch=st.integers(1, 5),
)
def test_everyone_gets_the_vector_of_their_text_whatever_is_cancelled(
    texts: list[str], cancelled: set[int], max_batch: int
) -> None:
    async def scenario() -> None:
        encoder = GatedEncoder()
        async with MicroBatcher(encoder, max_batch=max_batch) as batcher:
            tasks = [asyncio.create_task(batcher.encode(text)) for text in texts]
            await asyncio.sleep(0)
            for number in cancelled & set(range(len(texts))):
                tasks[number].cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for number, (text, result) in enumerate(zip(texts, results, strict=True)):
            if number in cancelled:
                assert isinstance(result, asyncio.CancelledError)
            else:
                assert not isinstance(result, BaseException)
                assert tuple(result) == vector_of(text)
        assert all(len(batch) <= max_batch for batch in encoder.batches)

    asyncio.run(scenario())
