"""A small HTTP client for the commands that talk to a running gateway."""

from typing import Any

import aiohttp
import orjson

from experts.errors import ComposerError

TIMEOUT = aiohttp.ClientTimeout(total=300, sock_connect=5)


class GatewayError(ComposerError):
    """The gateway refused, or can't be reached."""


async def post(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Post JSON; returns the JSON answer and its headers (lower-case names).

    Raises:
        GatewayError: with the gateway's own words.
    """
    try:
        async with session.post(
            url, data=orjson.dumps(body), headers={"content-type": "application/json"}
        ) as reply:
            raw = await reply.read()
            headers = {key.lower(): value for key, value in reply.headers.items()}
            status = reply.status
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise GatewayError(f"no answer from {url}: {type(error).__name__} {error}") from error
    try:
        answer = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise GatewayError(f"status {status} from {url}, and no JSON") from error
    if status != 200:
        message = answer.get("error", {}).get("message", "") if isinstance(answer, dict) else ""
        raise GatewayError(f"status {status}: {message}")
    return answer, headers
