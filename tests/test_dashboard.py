"""The dashboard in a real browser, against a gateway that answers real requests."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from composer.state import Endpoint, ExpertStatus, KeyRecord
from composer.state.records import TrainingProgress, TrainingRecord
from composer.state.store import version_key
from experts.spec import ExpertSpec
from gateway.auth import digest_of
from tests import small_composition
from tests.faulty import faulty_server
from tests.small_composition import Running, small_gateway

MARKUP = "<img src=x onerror='window.pwned=1'>"
SENTENCES = {"greeting": "hello there, how are you", MARKUP: "will it rain in Rome tomorrow"}
QUALITY = {
    "greeting": {"anne": 0.9, "bob": 0.4, "lost": 0.1},
    MARKUP: {"anne": 0.3, "bob": 0.8, "lost": 0.1},
}
SPECS = [ExpertSpec(id=expert, kind="remote", engine="up") for expert in ("anne", "bob", "lost")]
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1000",
)
SHOWN_S = 20


@dataclass(frozen=True)
class Page:
    """What a person does with the page; every call leaves the event loop to the gateway."""

    driver: webdriver.Chrome
    url: str

    async def open(self) -> None:
        await asyncio.to_thread(self.driver.get, f"{self.url}/dashboard")

    async def run(self, script: str) -> Any:
        return await asyncio.to_thread(self.driver.execute_script, script)

    async def command(self, name: str, **arguments: Any) -> Any:
        """One of the DevTools' commands."""
        return await asyncio.to_thread(self.driver.execute_cdp_cmd, name, arguments)

    async def text(self, part: str) -> str:
        return str(await self.run(f"return document.getElementById('{part}').innerText"))

    async def until(self, part: str, *words: str) -> str:
        """Wait until a part of the page shows all of these; its whole text."""

        def shown(driver: webdriver.Chrome) -> bool:
            there = driver.find_element(By.ID, part).text
            return all(word in there for word in words)

        wait = WebDriverWait(self.driver, SHOWN_S, poll_frequency=0.1)
        try:
            await asyncio.to_thread(wait.until, shown)
        except TimeoutException:
            pytest.fail(f"#{part} does not show {words}, but: {await self.text(part)}")
        return await self.text(part)

    async def use_key(self, key: str) -> None:
        def type_and_submit() -> None:
            self.driver.find_element(By.ID, "ask-key").send_keys(key)
            self.driver.find_element(By.CSS_SELECTOR, "#ask-form [type=submit]").click()

        await asyncio.to_thread(type_and_submit)

    async def screenshot(self, file: Path, scheme: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await self.command("Emulation.setEmulatedMedia", features=[feature])
        height = await self.run("return document.documentElement.scrollHeight")
        size = {"width": 1280, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self.command("Emulation.setDeviceMetricsOverride", **size)
        await asyncio.sleep(0.5)
        await asyncio.to_thread(self.driver.save_screenshot, str(file))


@pytest.fixture(scope="module")
def driver(
    need_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = need_program("chromium")
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(need_program("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


@asynccontextmanager
async def opened(
    driver: webdriver.Chrome, folder: Path, cache_dir: Path, **settings: object
) -> AsyncIterator[tuple[Page, Running]]:
    async with faulty_server() as upstream:
        endpoint = Endpoint(engine="up", base_url=upstream.url, state="ready")
        async with small_gateway(
            folder, cache_dir, SPECS, [endpoint], QUALITY, **settings
        ) as running:
            page = Page(driver, running.url)
            try:
                yield page, running
            finally:
                await page.command("Emulation.clearDeviceMetricsOverride")
                # Nothing of this gateway's page may go on asking the next one.
                await asyncio.to_thread(driver.get, "about:blank")


@pytest.fixture(autouse=True)
def hostile_category(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_composition, "SENTENCES", SENTENCES)


async def ask(running: Running, prompt: str, model: str = "auto") -> str:
    """Send a prompt; the id of its decision."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}]}
    async with running.session.post("/v1/chat/completions", json=body) as reply:
        assert reply.status == 200, await reply.text()
        return reply.headers["x-composer-decision"]


async def test_page_shows_experts_categories_and_reasons_when_prompts_were_sent(
    driver: webdriver.Chrome, tmp_path: Path, cache_dir: Path
) -> None:
    async with opened(driver, tmp_path, cache_dir) as (page, running):
        await page.open()
        await page.until("health", "ready")
        await page.until("decisions", "curl", f"{running.url}/v1/chat/completions")
        await page.until("experts", "anne", "bob", "lost")
        greeting, weather = SENTENCES.values()
        for _ in range(10):
            decision = await ask(running, greeting)
            await ask(running, weather)
        await rate(running, decision)
        reason = f"its verification failed: {MARKUP}"
        await running.state.statuses.put({"lost": ExpertStatus(state="failed", reason=reason)})

        decisions = await page.until("decisions", "anne", "bob", "greeting", MARKUP)
        assert decisions.count("is expected to score 0.90, next 'bob' 0.40") == 10
        assert f"category '{MARKUP}'" in decisions
        assert decisions.count("ok") >= 20
        await page.until("tiles", "Requests\n20", "100 %")
        await page.until("categories", "greeting", MARKUP, "50 %")
        await page.until("quality", "greeting", "0.90", MARKUP, "0.80")
        await page.until("experts", "failed", reason)
        await page.until("health", "degraded")
        await page.until("banner", "Degraded", "lost")
        charts = "return document.querySelectorAll('.js-plotly-plot .main-svg').length"
        assert await page.run(charts) >= 2

        assert await page.run("return window.pwned") is None
        assert await page.run("return document.querySelectorAll('main img').length") == 0
        for scheme in ("light", "dark"):
            file = tmp_path / f"dashboard-{scheme}.png"
            await page.screenshot(file, scheme)
            assert file.stat().st_size > 50_000


async def rate(running: Running, decision: str) -> None:
    async with asyncio.timeout(10):
        while True:
            body = {"decision": decision, "score": 1.0}
            async with running.session.post("/v1/feedback", json=body) as reply:
                if reply.status == 200:
                    return
            await asyncio.sleep(0.1)


async def test_decision_opens_and_filters_when_a_person_asks_for_more(
    driver: webdriver.Chrome, tmp_path: Path, cache_dir: Path
) -> None:
    async with opened(driver, tmp_path, cache_dir) as (page, running):
        greeting, weather = SENTENCES.values()
        decision = await ask(running, greeting)
        await ask(running, weather)
        await page.open()
        await page.until("decisions", "anne", "bob")
        await page.run(f"document.getElementById('decision-{decision}').click()")
        await page.until("decisions", decision, "Uncertainty", "1. anne", "2. bob")
        await page.until("by-expert", "all", "anne", "bob")
        await page.run(
            "const select = document.getElementById('by-expert');"
            "select.value = 'bob'; select.dispatchEvent(new Event('change'))"
        )
        async with asyncio.timeout(SHOWN_S):
            while "anne" in (await page.text("decisions")).split("\n"):
                await asyncio.sleep(0.1)
        assert "bob" in await page.text("decisions")


async def test_trainings_and_versions_are_told_when_there_are_some(
    driver: webdriver.Chrome, tmp_path: Path, cache_dir: Path
) -> None:
    async with opened(driver, tmp_path, cache_dir) as (page, running):
        await page.open()
        await page.until("trainings", "coe trainings start")
        now = time.time()
        live = (await running.state.live.all())["auto"]
        figures = {"routed": 0.63, "best_single": 0.51, "best_single_expert": "anne"}
        former = live.current.model_copy(
            update={"version": "0123456789ab", "created_at": now - 60, "summary": figures}
        )
        for version in (live.current, former):
            key = version_key(version.name, version.version)
            await running.state.versions.put({key: version})
        history = live.model_copy(update={"former": (former.version,), "changed_at": now})
        await running.state.live.put({"auto": history})
        done = TrainingRecord(
            id="tr-done",
            composition="auto",
            datasets=("ds-1",),
            state="succeeded",
            report={**figures, "oracle": 0.8, "category_accuracy": 0.93, "n_prompts": 40},
            version=former.version,
            created_at=now - 90,
            started_at=now - 89,
            finished_at=now - 60,
        )
        progress = TrainingProgress(share=0.4, lines=("embedding 40 prompts",))
        others = {
            "tr-runs": {"state": "running", "created_at": now, "progress": progress},
            "tr-failed": {"state": "failed", "error": f"no outcomes in {MARKUP}"},
        }
        records = [done, *(done.model_copy(update={"id": t, **u}) for t, u in others.items())]
        await running.state.trainings.put({record.id: record for record in records})

        await page.until("trainings", "running", "40 %", "embedding 40 prompts")
        await page.until("trainings", "0.63 routed, 0.51 best single (anne)", "category right 93 %")
        await page.until("trainings", "failed", f"no outcomes in {MARKUP}")
        await page.until("compositions", "live", "0123456789", "live before", "0.63")


async def test_nothing_comes_from_elsewhere_when_the_page_loads(
    driver: webdriver.Chrome, tmp_path: Path, cache_dir: Path
) -> None:
    async with opened(driver, tmp_path, cache_dir) as (page, running):
        await asyncio.to_thread(driver.get_log, "browser")
        await ask(running, SENTENCES["greeting"])
        await page.open()
        await page.until("decisions", "anne")
        names = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
        resources = await page.run(names)
        assert any("plotly.min.js" in name for name in resources)
        assert all(name.startswith(running.url) for name in resources), resources
        log = await asyncio.to_thread(driver.get_log, "browser")
        assert [line["message"] for line in log if line["level"] == "SEVERE"] == []


async def test_page_asks_for_a_key_when_it_has_none_or_a_wrong_one(
    driver: webdriver.Chrome, tmp_path: Path, cache_dir: Path
) -> None:
    async with opened(driver, tmp_path, cache_dir, auth={"required": True}) as (page, running):
        for scope in ("user", "admin"):
            record = KeyRecord(
                id=f"k-{scope}",
                name=scope,
                digest=digest_of(f"secret-{scope}"),
                scopes=frozenset({scope}),
                created_at=0.0,
            )
            await running.state.keys.put({record.id: record})
        await page.open()
        await page.until("ask", "holders of an admin key")
        assert "anne" not in await page.text("experts")
        await page.use_key("wrong")
        await page.until("ask", "does not know this key")
        await page.use_key("secret-user")
        await page.until("ask", "lacks the scope 'admin'")
        await page.use_key("secret-admin")
        await page.until("experts", "anne", "bob")
        assert await page.run("return document.getElementById('ask').open") is False
        assert "secret" not in await page.run("return document.documentElement.outerHTML")


async def test_page_says_so_and_recovers_when_the_gateway_is_out_of_reach(
    driver: webdriver.Chrome, tmp_path: Path, cache_dir: Path
) -> None:
    async with opened(driver, tmp_path, cache_dir) as (page, _):
        await page.open()
        await page.until("experts", "anne")
        await page.command("Network.enable")
        limits = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        await page.command("Network.emulateNetworkConditions", offline=True, **limits)
        try:
            await page.until("banner", "Unreachable", "last known")
            assert "anne" in await page.text("experts")
        finally:
            await page.command("Network.emulateNetworkConditions", offline=False, **limits)
        await page.until("health", "ready")
        assert await page.run("return document.getElementById('banner').hidden") is True
