"""Large request bodies: written to a file piece by piece, within bounds on length and time."""

import asyncio
from typing import IO

from fastapi import Request
from starlette.requests import ClientDisconnect

from experts.errors import InvalidRequest, TooLarge, TooSlow
from gateway.asgi import discard

WHOLE_S = 3600.0
"""Deadline of a whole upload, however steadily it trickles."""


async def receive_file(
    request: Request, file: IO[bytes], *, max_bytes: int, silence_s: float
) -> int:
    """Write the body to `file`; returns its length. `silence_s` bounds the wait for more of it.

    Raises:
        TooLarge, TooSlow: over the bound, or not in time.
        InvalidRequest: the client hung up.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        await discard(request.receive)
        raise _too_large(max_bytes)
    length = 0
    parts = aiter(request.stream())
    try:
        async with asyncio.timeout(WHOLE_S):
            while True:
                async with asyncio.timeout(silence_s):
                    part = await anext(parts, None)
                if part is None:
                    return length
                length += len(part)
                if length > max_bytes:
                    await discard(request.receive)
                    raise _too_large(max_bytes)
                await asyncio.to_thread(file.write, part)
    except TimeoutError as error:
        raise TooSlow("the request body did not arrive in time") from error
    except ClientDisconnect as error:
        raise InvalidRequest("the client hung up before its body was whole") from error


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"the request body is over {max_bytes} bytes: send less")
