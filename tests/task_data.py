"""Labelled task data for tests: the demo's prompts with outcomes that are made to order."""

import json
from collections.abc import Mapping
from typing import Any

from composer.config import demo_data_files


def prompts(category: str, n: int = 20) -> list[dict[str, Any]]:
    """Prompts of one category of the demo."""
    (file,) = (file for file in demo_data_files() if file.stem == category)
    rows = [json.loads(line) for line in file.read_text().splitlines()[:n]]
    return [{key: row[key] for key in ("id", "prompt", "category")} for row in rows]


def graded(quality: Mapping[str, Mapping[str, float]], n: int = 20) -> list[dict[str, Any]]:
    """Outcomes on n prompts of each category: `quality` is category -> expert -> mean score."""
    return [
        {**prompt, "expert": expert, "score": float(i % 10 < score * 10)}
        for category, scores in quality.items()
        for i, prompt in enumerate(prompts(category, n))
        for expert, score in scores.items()
    ]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
