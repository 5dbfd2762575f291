"""Does each demo adapter beat its base on the prompts of its categories?

`python -m eval.demo.adapters` (`make demo-adapters-report`) serves base and adapters from one real
engine, answers every hand-written prompt of their categories greedily with both, and prints the
paired differences. It exits 1 unless every adapter's interval lies above zero.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from composer.config import demo_experts_file, load_config, read_experts
from eval.demo.grade import Prompt, engine, grade, read_prompts
from experts.demo.make_data import CATEGORIES
from experts.engines.embedded.weights import prepare_smollm2
from experts.registry import index_experts
from routers.intervals import Interval, paired_bootstrap

ADAPTERS = Path(__file__).parents[2] / "experts" / "demo" / "adapters"


@dataclass(frozen=True, slots=True)
class Row:
    """Scores of the base and of an adapter on the same prompts of one category, or of all of its
    categories together."""

    adapter: str
    category: str
    base: tuple[float, ...]
    own: tuple[float, ...]

    @property
    def gain(self) -> Interval:
        return paired_bootstrap([own - base for own, base in zip(self.own, self.base, strict=True)])

    def __str__(self) -> str:
        count = len(self.base)
        means = f"{sum(self.base) / count:>7.3f}{sum(self.own) / count:>9.3f}"
        return f"{self.adapter:<9}{self.category:<14}{count:>4}{means}   {self.gain}"


HEADER = f"{'adapter':<9}{'category':<14}{'n':>4}{'base':>7}{'adapter':>9}   gain [95 % interval]"


def compare(url: str, adapter: str, prompts: Sequence[Prompt]) -> list[Row]:
    """A row a category, then one of all together."""
    specs = index_experts(read_experts(demo_experts_file()))
    base = asyncio.run(grade(url, prompts, specs["general"]))
    own = asyncio.run(grade(url, prompts, specs[adapter]))
    rows = []
    for category in (*CATEGORIES[adapter], "all"):
        chosen = [
            (b.score, o.score)
            for b, o in zip(base, own, strict=True)
            if category in ("all", b.prompt.category)
        ]
        rows.append(
            Row(adapter, category, tuple(b for b, _ in chosen), tuple(o for _, o in chosen))
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m eval.demo.adapters", description=__doc__)
    parser.add_argument("--model", type=Path, help="base model folder instead of the packaged one")
    parser.add_argument("--only", choices=sorted(CATEGORIES), help="this adapter alone")
    parser.add_argument("--adapters", type=Path, default=ADAPTERS, help="folder of the adapters")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args(arguments)
    names = [args.only] if args.only else sorted(CATEGORIES)
    model = args.model or prepare_smollm2(load_config().cache_dir, print)
    served = ["general", *(f"{name}={args.adapters / name}" for name in names)]
    prompts = read_prompts()
    failed = []
    print(HEADER)
    with engine(model, served, args.threads) as url:
        for name in names:
            rows = compare(url, name, [p for p in prompts if p.category in CATEGORIES[name]])
            print("\n".join(map(str, rows)), flush=True)
            if rows[-1].gain.low <= 0:
                failed.append(name)
    if failed:
        print(f"no clear gain over the base: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
