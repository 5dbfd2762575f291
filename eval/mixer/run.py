"""The experiment: experts trained once, every way of using them graded on the same prompts.

Each step leaves a file and is skipped when that is there, so that a run goes on where it was.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from eval.mixer.answers import grade
from eval.mixer.tasks import Task
from experts.mixer.losses import RoutingLoss
from experts.mixer.mixture import Mixture, compose
from experts.mixer.prior import global_prior
from experts.mixer.spec import GateSpec, GlobalSpec
from experts.mixer.training.data import (
    Encoded,
    Example,
    balanced_sample,
    encode,
    majority_share,
)
from experts.mixer.training.experts import read_experts, train_experts
from experts.mixer.training.findings import observe
from experts.mixer.training.loop import Recipe
from experts.mixer.training.router import RouterTraining, train_router, train_vectors
from experts.mixer.training.tasks import Base

Graded = dict[str, list[int]]
Report = Callable[[str], None]
LIFT = 0.10
HELD_OUT = " on held-out tasks"
EVERYTHING = "everything"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything: the full experiment, or its smoke version."""

    experts: Recipe
    router: Recipe
    vectors: Recipe
    sizes: tuple[int, ...] = (2000, 500)
    seeds: tuple[int, ...] = (0, 1, 2)
    rank: int = 8
    top_k: int = 2
    max_tokens: int = 320


FULL = Plan(
    experts=Recipe(steps=250, rate=1e-3),
    router=Recipe(steps=250, rate=2e-3),
    vectors=Recipe(steps=60, rate=5e-3),
)
SMOKE = Plan(
    experts=Recipe(steps=24, rate=3e-3),
    router=Recipe(steps=16, rate=5e-3),
    vectors=Recipe(steps=8, rate=1e-2),
    sizes=(96,),
    seeds=(0,),
    rank=4,
)


class Experiment:
    """Holds the base, the tasks and the folder of what is done."""

    def __init__(
        self,
        base: Base,
        tasks: Sequence[Task],
        plan: Plan,
        out: Path,
        report: Report,
        held_out: Sequence[Task] = (),
        *,
        every_task: bool = False,
    ) -> None:
        self._base = base
        self._plan = plan
        self._out = out
        self._report = report
        self.tasks = list(tasks)
        self._held_out = list(held_out)
        self._every_task = every_task
        self._encoded: dict[str, list[Encoded]] = {}

    def run(self, embed: Callable[[Sequence[str]], np.ndarray]) -> None:
        """Everything; `embed` turns texts into unit vectors (the gateway's encoder)."""
        self.choose_tasks()
        pool = compose(self._experts(), gate=GateSpec(kind="uniform"))
        places = {task.name: number for number, task in enumerate(self.tasks)}
        self._cell("base", None)
        self._cell("oracle adapter", pool, only=lambda example: places[example.domain])
        self._cell("uniform merge", pool)
        for name, number in places.items():
            self._cell(f"single {name}", pool, only=lambda example, n=number: n)  # type: ignore[misc]
        self._cell("picked by the encoder", pool, only=self._picker(embed))
        arrow = compose(pool.adapters, gate=GateSpec(kind="arrow", top_k=self._plan.top_k))
        self._cell("Arrow", arrow)
        self._one_big_adapter()
        self._vectors(pool, embed)
        self._routers(pool)

    def choose_tasks(self) -> None:
        """Keep the tasks that a single adapter lifts by ten points above the majority answer, or
        every task if that was asked for."""
        kept, told = [], {}
        for task in self.tasks:
            encoded = {task.name: self._encode(task)}
            folder = self._train(encoded)[task.name]
            alone = compose(read_experts({task.name: folder}), gate=GateSpec(kind="uniform"))
            graded = self._cell(f"alone {task.name}", alone, tasks=[task])
            score, majority = float(np.mean(graded[task.name])), majority_share(task.test)
            told[task.name] = {"adapter": score, "majority": majority, "tests": len(task.test)}
            self._report(f"{task.name}: {score:.3f}, majority {majority:.3f}")
            if self._every_task or score >= majority + LIFT:
                kept.append(task)
        self._write("tasks", {"kept": [task.name for task in kept], "tasks": told})
        self.tasks = kept or self.tasks

    def _routers(self, pool: Mixture) -> None:
        """LoRA-Mixer's router: sizes of its data, its loss with both signs and without, seeds."""
        gate = GateSpec(kind="linear", top_k=self._plan.top_k)
        losses = {
            "described": RoutingLoss(sign=1),
            "printed": RoutingLoss(sign=-1),
            "without": None,
        }
        domains = {task.name: task.train for task in self.tasks}
        for size in self._plan.sizes:
            for told, routing in losses.items():
                for seed in self._plan.seeds:
                    name = f"mixer {size} {told} seed {seed}"
                    if self._done(name):
                        continue
                    sample = balanced_sample(domains, size, seed)
                    recipe = replace(self._plan.router, seed=seed)
                    mixture, _ = train_router(
                        self._base,
                        compose(pool.adapters, gate=gate),
                        encode(self._base.tokenizer, sample, self._plan.max_tokens),
                        RouterTraining(recipe, routing),
                        keep=self._out / "state" / name.replace(" ", "-"),
                        report=lambda line, name=name: self._report(f"{name}: {line}"),  # type: ignore[misc]
                    )
                    self._write(f"routing of {name}", observe(
                        self._base, mixture, self._all_encoded()
                    ).as_json())  # fmt: skip
                    self._cell(name, mixture)

    def _vectors(self, pool: Mixture, embed: Callable[[Sequence[str]], np.ndarray]) -> None:
        """PHATGOOSE, and GLIDER: the same gate vectors with the instructions' prior."""
        names = ("PHATGOOSE", "GLIDER")
        last = f"{names[1]}{HELD_OUT}" if self._held_out else names[1]
        if self._done(names[0]) and self._done(names[1]) and self._done(last):
            return
        gate = GateSpec(kind="vector", top_k=self._plan.top_k)
        mixture = train_vectors(
            self._base,
            compose(pool.adapters, gate=gate),
            self._all_encoded(),
            self._plan.vectors,
            keep=self._out / "state" / "vectors",
            report=lambda line: self._report(f"gate vector of {line}"),
        )
        self._cell(names[0], mixture)
        instructions = embed([task.instruction or task.name for task in self.tasks])
        weight = GlobalSpec()

        def prior(example: Example) -> list[float]:
            query = embed([example.prompt])[0]
            return [float(value) for value in global_prior(instructions, query, weight)]

        self._cell(names[1], mixture, prior=prior)
        if self._held_out:
            self._cell(f"base{HELD_OUT}", None, tasks=self._held_out)
            self._cell(f"{names[0]}{HELD_OUT}", mixture, tasks=self._held_out)
            self._cell(f"{names[1]}{HELD_OUT}", mixture, tasks=self._held_out, prior=prior)

    def _one_big_adapter(self) -> None:
        """One adapter of as many parameters as all experts, trained on all of their data for as
        many steps as all of them together."""
        encoded = {EVERYTHING: [item for items in self._all_encoded().values() for item in items]}
        many = len(self.tasks)
        recipe = replace(self._plan.experts, steps=self._plan.experts.steps * many)
        rank = self._plan.rank * many
        folder = self._train(encoded, recipe, rank)[EVERYTHING]
        adapter = read_experts({EVERYTHING: folder})
        self._cell("one big adapter", compose(adapter, gate=GateSpec(kind="uniform")))

    def _picker(self, embed: Callable[[Sequence[str]], np.ndarray]) -> Callable[[Example], int]:
        """The expert whose training prompts the encoder finds nearest on average."""
        centres = np.stack(
            [
                embed([example.prompt for example in task.train[:200]]).mean(axis=0)
                for task in self.tasks
            ]
        )
        return lambda example: int(np.argmax(centres @ embed([example.prompt])[0]))

    def _experts(self) -> list:  # type: ignore[type-arg]
        return read_experts(self._train(self._all_encoded()))

    def _train(
        self,
        encoded: Mapping[str, Sequence[Encoded]],
        recipe: Recipe | None = None,
        rank: int | None = None,
    ) -> dict[str, Path]:
        rank = rank or self._plan.rank
        return train_experts(
            self._base,
            encoded,
            recipe or self._plan.experts,
            self._out / "experts",
            rank=rank,
            alpha=2.0 * rank,
            report=self._report,
        )

    def _all_encoded(self) -> dict[str, list[Encoded]]:
        return {task.name: self._encode(task) for task in self.tasks}

    def _encode(self, task: Task) -> list[Encoded]:
        if task.name not in self._encoded:
            rows = encode(self._base.tokenizer, task.train, self._plan.max_tokens)
            self._encoded[task.name] = rows
        return self._encoded[task.name]

    def _cell(
        self,
        name: str,
        mixture: Mixture | None,
        *,
        tasks: Sequence[Task] | None = None,
        only: Callable[[Example], int] | None = None,
        prior: Callable[[Example], Sequence[float]] | None = None,
    ) -> Graded:
        """Grade one method on the tests of all tasks, unless it was graded before."""
        if self._done(name):
            told: Graded = json.loads(self._path(name).read_text())["graded"]
            return told
        started = time.monotonic()
        graded = {
            task.name: grade(self._base, mixture, task.test, only=only, prior=prior)
            for task in (tasks or self.tasks)
        }
        seconds = round(time.monotonic() - started, 1)
        mean = float(np.mean([np.mean(scores) for scores in graded.values()]))
        self._report(f"{name}: {mean:.3f} ({seconds:.0f} s)")
        self._write(name, {"method": name, "graded": graded, "seconds": seconds})
        return graded

    def _done(self, name: str) -> bool:
        return self._path(name).is_file()

    def _path(self, name: str) -> Path:
        plain = "".join(c if c.isalnum() or c in "._-" else "-" for c in name)
        return self._out / "cells" / f"{plain}.json"

    def _write(self, name: str, value: object) -> None:
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(value, indent=1) + "\n")
        partial.replace(path)
