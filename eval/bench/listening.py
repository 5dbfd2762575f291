"""How a server of the benchmark tells its address and learns that it is to end."""

import asyncio
import json
import signal
import socket


def announce(listener: socket.socket) -> None:
    """Print the address as a line of JSON, for the process that started this one."""
    host, port = listener.getsockname()[:2]
    print(json.dumps({"url": f"http://{host}:{port}"}), flush=True)


async def until_terminated() -> None:
    """Wait for SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
