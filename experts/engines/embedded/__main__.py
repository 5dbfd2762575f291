"""`python -m experts.engines.embedded`: the command line of the engine process."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, set what must be set before torch is imported, and serve; returns the exit code."""
    args = _parser().parse_args(arguments)
    served = _served(args.serve)
    logging.basicConfig(
        level=args.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # Waiting threads sleep instead of spinning: beside other busy processes, spinning costs a whole
    # time slice at every one of a step's hundreds of barriers.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    from experts.engines.embedded.server import ServerOptions, serve
    from experts.errors import ArtefactError, SetupError

    try:
        return serve(
            ServerOptions(
                model=args.model,
                served=served,
                host=args.host,
                port=args.port,
                threads=args.threads,
                dtype=args.dtype,
                max_running=args.max_running,
                max_waiting=args.max_waiting,
                max_context=args.max_context,
                drain_seconds=args.drain_seconds,
                stuck_seconds=args.stuck_seconds,
                log_level=args.log_level,
                api_key_env=args.api_key_env,
            )
        )
    except (SetupError, ArtefactError) as error:
        logging.getLogger(__name__).error("%s", error)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experts.engines.embedded",
        description="Serve one base and its LoRA adapters by the OpenAI API.",
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument(
        "--serve",
        action="append",
        required=True,
        metavar="NAME[=DIR]",
        help="a name to serve: the bare base, or the LoRA adapter in DIR; may be repeated",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=_between(0, 65535), required=True)
    parser.add_argument("--threads", type=_between(1, 256), default=_cores())
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument("--max-running", type=_between(1, 256), default=16)
    parser.add_argument("--max-waiting", type=_between(0, 10_000), default=64)
    parser.add_argument("--max-context", type=_between(16, 1_000_000), default=2048)
    parser.add_argument("--drain-seconds", type=float, default=10.0)
    parser.add_argument(
        "--stuck-seconds", type=float, default=30.0, help="no step for so long is a failure"
    )
    parser.add_argument("--api-key-env", help="environment variable that holds the key to ask for")
    parser.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info"
    )
    return parser


def _served(values: Sequence[str]) -> tuple[tuple[str, Path | None], ...]:
    served: dict[str, Path | None] = {}
    for value in values:
        name, equals, folder = value.partition("=")
        if not name or (equals and not folder) or name in served:
            raise SystemExit(f"--serve {value}: a new NAME or NAME=DIR is needed")
        served[name] = Path(folder) if folder else None
    return tuple(served.items())


def _between(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be between {low} and {high}")
        return value

    return parse


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), 16)
    return min(os.cpu_count() or 1, 16)


if __name__ == "__main__":
    exit_code = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Nothing is left to do, and taking torch apart module by module takes a second or more.
    os._exit(exit_code)
