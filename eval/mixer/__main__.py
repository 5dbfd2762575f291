"""`python -m eval.mixer`: mixers beside their alternatives, on real tasks or as a smoke test."""

import argparse
import os
from functools import partial
from pathlib import Path

import torch

from composer.config import load_config
from eval.mixer.report import table
from eval.mixer.run import FULL, SMOKE, Experiment
from eval.mixer.tasks import held_out_tasks, real_tasks, smoke_tasks
from experts.engines.embedded.weights import prepare_smollm2
from experts.errors import ComposerError
from experts.mixer.training.tasks import load_base
from routers.encoders import load_encoder


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.mixer", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(".composer/eval-mixer"))
    parser.add_argument("--smoke", action="store_true", help="three tiny tasks made here; minutes")
    parser.add_argument("--tests", type=int, default=150, help="test prompts of a task, at most")
    parser.add_argument("--only", help="tasks with these words in their names, with commas")
    parser.add_argument("--every-task", action="store_true", help="also those not learned")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    say = partial(print, flush=True)
    try:
        if args.smoke:
            tasks, held = smoke_tasks(), []
        elif data := os.environ.get("COMPOSER_DATA"):
            tasks = real_tasks(Path(data), tests=args.tests)
            held = held_out_tasks(Path(data), tests=args.tests)
        else:
            raise SystemExit("COMPOSER_DATA names no folder: set it, or try --smoke")
        if args.only:
            words = args.only.split(",")
            tasks = [task for task in tasks if any(word in task.name for word in words)]
        config = load_config(None, flags={})
        base = load_base(prepare_smollm2(config.cache_dir, say), "bfloat16")
        encoder = load_encoder(config.encoder.backend, config.cache_dir, threads=1)
        plan = SMOKE if args.smoke else FULL
        out = args.out / ("smoke" if args.smoke else "every" if args.every_task else "full")
        experiment = Experiment(base, tasks, plan, out, say, held, every_task=args.every_task)
        experiment.run(lambda texts: encoder.encode(list(texts)))
    except ComposerError as error:
        raise SystemExit(str(error)) from error
    told = table(out)
    (out / "report.md").write_text(told)
    say(told)


if __name__ == "__main__":
    main()
