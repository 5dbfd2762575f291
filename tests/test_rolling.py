"""A real engine of our own, which takes and loses adapters while it answers."""

import asyncio
import shutil
from pathlib import Path

import pytest

from tests.controlled import (
    EXPERTS,
    ask,
    controlled_gateway,
    register,
    show,
    until_adopted,
    until_state,
)
from tests.small_composition import Running

pytestmark = pytest.mark.timeout(400)

DEMO = Path(__file__).parents[1] / "experts" / "demo" / "adapters"
START_S = 120
"""A machine under load starts an engine slowly."""


async def serves(gateway: Running, *experts: str) -> None:
    """Until the engine of the base serves exactly these."""
    async with asyncio.timeout(START_S):
        while (await gateway.state.endpoints.get("own-base")).serves != experts:
            await asyncio.sleep(0.2)


def damaged(folder: Path) -> Path:
    """An adapter that passes every check of its files' form, and can't be served."""
    shutil.copytree(DEMO / "sql", folder)
    file = folder / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-2:] = b"\xc0\x7f"  # not a number in bfloat16
    file.write_bytes(data)
    return folder


async def test_adapters_come_and_go_without_a_failed_request_and_a_bad_one_harms_no_other(
    tmp_path: Path, cache_dir: Path
) -> None:
    roots = [str(cache_dir / "models"), str(tmp_path / "weights")]
    async with controlled_gateway(tmp_path, cache_dir, model_roots=roots) as gateway:
        folder = cache_dir / "models" / "SmolLM2-135M-Instruct"
        await register(gateway.session, id="base", kind="model", path=str(folder))
        await until_state(gateway.session, "base", "ready", START_S)
        await until_adopted(gateway)
        answers: list[int] = []

        async def traffic() -> None:
            while True:
                status, _, _ = await ask(gateway.session, "base")
                answers.append(status)

        clients = [asyncio.create_task(traffic()) for _ in range(2)]
        try:
            maths = {"id": "maths", "kind": "lora", "base": "base"}
            await register(gateway.session, **maths, adapter=str(DEMO / "maths"))
            await until_state(gateway.session, "maths", "ready", START_S)
            await serves(gateway, "base", "maths")
            await until_adopted(gateway)
            status, expert, answer = await ask(gateway.session, "maths", "What is 2 + 3?")
            assert (status, expert, answer["model"]) == (200, "maths", "maths")

            bad = damaged(tmp_path / "weights" / "bad")
            await register(gateway.session, id="bad", kind="lora", base="base", adapter=str(bad))
            await gateway.session.delete(f"{EXPERTS}/maths")
            view = await until_state(gateway.session, "bad", "failed", START_S)
            assert "not finite" in view["reason"]
            await register(
                gateway.session, id="terse", kind="prompt", base="base", system_prompt="Be terse."
            )
            await until_state(gateway.session, "terse", "ready", START_S)
            await serves(gateway, "base", "terse")
            assert await show(gateway.session, "maths") is None
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
        assert len(answers) > 10
        assert set(answers) == {200}
        assert sorted((tmp_path / "processes").glob("own-base*")) != []
