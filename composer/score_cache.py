"""The decision cache of one process: scores by composition version, encoder and text."""

from collections import OrderedDict
from hashlib import blake2b

from routers.types import Scores

Key = bytes


def normalise(text: str) -> str:
    """What is scored for a text: runs of white space folded, none at the ends."""
    return " ".join(text.split())


def cache_key(version: str, encoder_id: str, text: str) -> Key:
    """Key of the scores of a normalised text under one composition version and encoder."""
    digest = blake2b(digest_size=16)
    digest.update(f"{version}\0{encoder_id}\0".encode())
    digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.digest()


class ScoreCache:
    """Least recently used entries leave first; `capacity` 0 turns the cache off."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._entries: OrderedDict[Key, Scores] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Scores | None:
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: Key, scores: Scores) -> None:
        if self.capacity == 0:
            return
        self._entries[key] = scores
        self._entries.move_to_end(key)
        if len(self._entries) > self.capacity:
            self._entries.popitem(last=False)
