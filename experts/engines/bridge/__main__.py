"""`python -m experts.engines.bridge`: the command line of the bridge process."""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence

LOOPBACK = ("127.0.0.1", "::1", "localhost")

_KEPT = ("PATH", "HOME", "TMPDIR", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")
_KEPT_PREFIXES = ("LC_", "LANG", "PYTHON", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, set what must be set before LiteLLM is imported, and serve; returns the exit code."""
    args = _parser().parse_args(arguments)
    logging.basicConfig(
        level=args.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    clean_environment()
    try:
        importlib.import_module("litellm")
    except ImportError as error:
        logging.getLogger(__name__).error(
            "LiteLLM can't be imported (%s): `make providers` installs it into .venv-litellm", error
        )
        return 2
    server = importlib.import_module("experts.engines.bridge.server")
    bounds = server.Bounds(
        max_body_bytes=args.max_body_bytes,
        max_in_flight=args.max_in_flight,
        request_s=args.request_seconds,
        idle_s=args.idle_seconds,
    )
    return int(server.serve(args.host, args.port, bounds, drain_s=args.drain_seconds))


def clean_environment() -> None:
    """Leave nothing in the environment that LiteLLM would take for a key or a setting.

    The key of a call comes with the call. Without this, a call without one would be paid for with
    whatever key happens to stand in the environment, or in a `.env` file.
    """
    for name in list(os.environ):
        if name not in _KEPT and not name.upper().startswith(_KEPT_PREFIXES):
            del os.environ[name]
    os.environ["LITELLM_MODE"] = "PRODUCTION"  # no .env file
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no download at import
    os.environ["HF_HUB_OFFLINE"] = "1"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experts.engines.bridge",
        description="Serve other providers by the OpenAI API, through LiteLLM. Loopback only: "
        "whoever reaches it may ask for any address.",
    )
    parser.add_argument("--host", default="127.0.0.1", choices=LOOPBACK)
    parser.add_argument("--port", type=_between(0, 65535), required=True)
    parser.add_argument("--max-body-bytes", type=_between(1024, 1 << 30), default=32 << 20)
    parser.add_argument("--max-in-flight", type=_between(1, 10_000), default=256)
    parser.add_argument(
        "--request-seconds", type=float, default=600.0, help="until an answer begins, or is whole"
    )
    parser.add_argument(
        "--idle-seconds", type=float, default=120.0, help="between two pieces of a stream"
    )
    parser.add_argument("--drain-seconds", type=float, default=10.0)
    parser.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info"
    )
    return parser


def _between(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text)
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"must be from {low} to {high}")
        return number

    return parse


if __name__ == "__main__":
    sys.exit(main())
