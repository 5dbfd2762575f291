"""The report of `coe eval`: JSON for scripts, a page for people."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.routing.figures import bars, lines, page, table
from experts.errors import DataError

OWN = "auto"


def write_report(folder: Path, results: dict[str, Any]) -> None:
    """Write `report.json` and `report.html`.

    Raises:
        DataError: the folder can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(results, indent=2) + "\n")
        (folder / "report.html").write_text(html_of(results))
    except OSError as error:
        raise DataError(f"can't write the report to {folder}: {error.strerror}") from error


def html_of(results: dict[str, Any]) -> str:
    """The page."""
    comparisons: list[dict[str, Any]] = results["comparisons"]
    parts = [
        "<p class=note>Gains are over the best single expert, chosen with hindsight on the judged "
        "prompts; 95 % intervals by paired bootstrap over prompts.</p>"
    ]
    if len(comparisons) > 1:
        parts += ["<h2>All data sets</h2>", _overview(comparisons)]
    for comparison in comparisons:
        parts.append(f"<h2>{comparison['data']}</h2>")
        parts += _comparison(comparison)
    if results.get("learning"):
        parts.append("<h2>Learning curves</h2>")
        parts += [_learning(curve) for curve in results["learning"]]
    if results.get("robustness"):
        parts.append("<h2>The same question in other words</h2>")
        parts += [
            f"<h3>{name}</h3>" + _robustness(found) for name, found in results["robustness"].items()
        ]
    if results.get("scope"):
        parts.append("<h2>Prompts of no category</h2>")
        parts += [
            f"<h3>{name}</h3>" + table(tuple(found), [[f"{value:.3f}" for value in found.values()]])
            for name, found in results["scope"].items()
        ]
    return page("How good routing is", parts)


def text_rows(comparison: dict[str, Any]) -> list[list[str]]:
    """A row of texts for every method, best first."""
    methods = comparison["methods"]
    order = sorted(methods, key=lambda name: -methods[name]["score"])
    return [
        [
            name,
            f"{methods[name]['score']:.4f}",
            _span(methods[name]["gain"]),
            _span(methods[name]["behind"]) if methods[name]["behind"] else "",
            f"{methods[name]['gap_closed']:.1%}",
            f"{methods[name]['train_s']:.1f}",
            f"{methods[name]['decide_ms']:.2f}",
        ]
        for name in order
    ]


HEAD = ("method", "score", "gain", f"{OWN} is ahead by", "of the gap", "training s", "decision ms")


def mean_gain(comparisons: Sequence[dict[str, Any]], method: str) -> float:
    """Mean over the data sets of a method's gain."""
    gains = [c["methods"][method]["gain"]["mean"] for c in comparisons if method in c["methods"]]
    return float(sum(gains) / max(len(gains), 1))


def _overview(comparisons: Sequence[dict[str, Any]]) -> str:
    names = list(comparisons[0]["methods"])
    rows = [
        [name, f"{mean_gain(comparisons, name):+.4f}"]
        + [f"{c['methods'][name]['gain']['mean']:+.4f}" for c in comparisons]
        for name in sorted(names, key=lambda name: -mean_gain(comparisons, name))
    ]
    return table(("method", "mean gain", *(c["data"] for c in comparisons)), rows)


def _comparison(comparison: dict[str, Any]) -> list[str]:
    methods = comparison["methods"]
    names = sorted(methods, key=lambda name: -methods[name]["score"])
    shown = [name for name in names if name != "random"]
    best = comparison["best_single"]
    facts = (
        f"<p>{comparison['prompts']} prompts, {comparison['experts']} experts. Best single: "
        f"{best['expert']} {best['score']:.4f}. Any expert: {comparison['random']:.4f}. Best of "
        f"the true category: {comparison['category_oracle']:.4f}. Best of each prompt: "
        f"{comparison['prompt_oracle']:.4f}.</p>"
    )
    gains = [methods[name]["gain"] for name in shown]
    return [
        facts,
        bars(
            "Gain over the best single expert",
            shown,
            [gain["mean"] for gain in gains],
            [(gain["low"], gain["high"]) for gain in gains],
        ),
        table(HEAD, text_rows(comparison)),
    ]


def _learning(curve: dict[str, Any]) -> str:
    return lines(
        curve["data"],
        "labelled prompts",
        "gain over the best single expert",
        {
            name: [(point["size"], point["gain"]["mean"]) for point in points]
            for name, points in curve["methods"].items()
        },
    )


def _robustness(found: dict[str, Any]) -> str:
    rows = [
        [name, f"{figures['unchanged']:.3f}", _span(figures["score"])]
        for name, figures in found.items()
    ]
    return table(("change", "decisions unchanged", "change in score"), rows)


def _span(interval: dict[str, float]) -> str:
    return f"{interval['mean']:+.4f} [{interval['low']:+.4f}, {interval['high']:+.4f}]"
