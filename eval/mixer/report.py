"""The table of an experiment, from its cells alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from eval.mixer.figures import averaged, interval, mean_score
from eval.mixer.run import HELD_OUT


def table(out: Path) -> str:
    """Markdown: the tasks, every method beside the oracle adapter, and what routing did."""
    cells = [json.loads(path.read_text()) for path in sorted((out / "cells").glob("*.json"))]
    graded = {cell["method"]: cell["graded"] for cell in cells if "method" in cell}
    tasks = next(cell for cell in cells if "kept" in cell)
    lines = [
        "## Tasks",
        "",
        "| task | tests | majority | its adapter | used |",
        "|---|--:|--:|--:|---|",
    ]
    for name, told in sorted(tasks["tasks"].items()):
        used = "yes" if name in tasks["kept"] else "no"
        figures = f"{told['majority']:.3f} | {told['adapter']:.3f}"
        lines.append(f"| {name} | {told['tests']} | {figures} | {used} |")
    oracle = graded["oracle adapter"]
    whole = {m: g for m, g in graded.items() if set(g) == set(oracle)}
    lines += [
        "",
        "## Methods",
        "",
        "| method | mean over tasks | minus the oracle [95 %] |",
        "|---|--:|---|",
    ]
    for method, scores in sorted(whole.items(), key=lambda item: -mean_score(item[1])):
        centre, low, high = interval(scores, oracle)
        lines.append(
            f"| {method} | {mean_score(scores):.3f} | {centre:+.3f} [{low:+.3f}, {high:+.3f}] |"
        )
    lines += _mixer_beside(whole) + _held_out(graded) + _seeds(whole) + _routing(out)
    return "\n".join(lines) + "\n"


def _mixer_beside(whole: dict[str, Any]) -> list[str]:
    """The router with the most data and the loss as described, averaged over its seeds, beside each
    alternative; the best single adapter is the best one on these very tests, which favours it."""
    sizes = [int(method.split()[1]) for method in whole if method.startswith("mixer ")]
    name = f"mixer {max(sizes)} described"
    mixer = averaged([scores for method, scores in whole.items() if method.startswith(name)])
    singles = {method: scores for method, scores in whole.items() if method.startswith("single ")}
    best = max(singles, key=lambda method: mean_score(singles[method]))
    others = (
        "oracle adapter",
        "uniform merge",
        "Arrow",
        best,
        "picked by the encoder",
        "one big adapter",
        "PHATGOOSE",
        "GLIDER",
    )
    lines = ["", f"## {name} ({mean_score(mixer):.3f}) minus", "", "| method | difference [95 %] |"]
    lines.append("|---|---|")
    for other in others:
        centre, low, high = interval(mixer, whole[other])
        lines.append(f"| {other} | {centre:+.3f} [{low:+.3f}, {high:+.3f}] |")
    return lines


def _held_out(graded: dict[str, Any]) -> list[str]:
    """Tasks that nothing was trained on."""
    found = {m.removesuffix(HELD_OUT): g for m, g in graded.items() if m.endswith(HELD_OUT)}
    if not found:
        return []
    lines = ["", "## Held-out tasks", "", "| method | mean over tasks |", "|---|--:|"]
    lines += [f"| {method} | {mean_score(scores):.3f} |" for method, scores in found.items()]
    centre, low, high = interval(found["GLIDER"], found["PHATGOOSE"])
    return [*lines, "", f"GLIDER minus PHATGOOSE: {centre:+.3f} [{low:+.3f}, {high:+.3f}]"]


def _seeds(whole: dict[str, Any]) -> list[str]:
    """Mean and standard deviation over the seeds of the same router."""
    groups: dict[str, list[float]] = {}
    for method, scores in whole.items():
        name, _, seed = method.partition(" seed ")
        if seed:
            groups.setdefault(name, []).append(mean_score(scores))
    lines = [
        "",
        "## Routers over seeds",
        "",
        "| router | mean | standard deviation |",
        "|---|--:|--:|",
    ]
    for name, means in sorted(groups.items()):
        lines.append(f"| {name} | {np.mean(means):.3f} | {np.std(means):.4f} |")
    return lines


def _routing(out: Path) -> list[str]:
    lines = [
        "",
        "## Routing",
        "",
        "| router | entropy | load ratio | own share |",
        "|---|--:|--:|--:|",
    ]
    for path in sorted((out / "cells").glob("routing-of-*.json")):
        found = json.loads(path.read_text())
        own = [
            share[found["experts"].index(domain)]
            for domain, share in found["by_domain"].items()
            if domain in found["experts"]
        ]
        name = path.stem.removeprefix("routing-of-").replace("-", " ")
        lines.append(
            f"| {name} | {found['entropy']:.3f} | {found['load_ratio']:.2f} | {np.mean(own):.3f} |"
        )
    return lines
