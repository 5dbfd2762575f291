"""Files that must outlive a crash: written down to the disk before anybody is told of them."""

import os
from pathlib import Path


def sync_file(file: Path) -> None:
    """Write what the system still holds of a file to the disk."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def move_into_place(source: Path, target: Path) -> None:
    """Rename a file or a folder of files, all of it on the disk before and after."""
    for part in source.iterdir() if source.is_dir() else ():
        sync_file(part)
    sync_file(source)
    os.replace(source, target)
    sync_file(target.parent)
