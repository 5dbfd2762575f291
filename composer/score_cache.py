"""The decision cache: scores by composition version, encoder and text.

An entry is looked for in this process, then in Redis, where the other gateways' entries are.
Rankings are never cached: what an expert may and can do is asked anew for each request.
"""

from collections import OrderedDict
from hashlib import blake2b

from composer.packing import Entry, pack, unpack
from composer.shared_cache import DIGEST_BYTES, SharedCache
from composer.snapshots import LiveComposition, View
from composer.state.store import EVERY_VERSION

Key = bytes


class LocalCache:
    """The part in this process. Least recently used entries leave first; `capacity` 0 is off."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._entries: OrderedDict[Key, Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Entry | None:
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: Key, entry: Entry) -> None:
        if self.capacity == 0:
            return
        self._entries[key] = entry
        self._entries.move_to_end(key)
        if len(self._entries) > self.capacity:
            self._entries.popitem(last=False)


class DecisionCache:
    """Both parts. Keys hold the time of a version's last flush, so older entries are out of reach
    the moment that a gateway hears of one."""

    def __init__(self, local: LocalCache, shared: SharedCache, encoder_id: str) -> None:
        self.local = local
        self._shared = shared
        self._encoder_id = encoder_id
        self._prefixes: dict[str, blake2b] = {}

    @property
    def enabled(self) -> bool:
        return bool(self.local.capacity or self._shared.capacity)

    def follow(self, view: View) -> None:
        """Take over a new view: hash what the keys of each live version begin with."""
        flushes = view.snapshot.flushes
        every = flushes.get(EVERY_VERSION, 0.0)
        self._prefixes = {}
        for live in view.compositions.values():
            version = live.record.version
            flushed = flushes.get(version, 0.0)
            start = f"{version}\0{self._encoder_id}\0{flushed}\0{every}\0".encode()
            self._prefixes[version] = blake2b(start, digest_size=DIGEST_BYTES)

    def key(self, version: str, text: str) -> Key:
        """Key of the scores of a normalised text under a live version."""
        digest = self._prefixes[version].copy()
        digest.update(text.encode("utf-8", "surrogatepass"))
        return digest.digest()

    async def find(self, composition: LiveComposition, key: Key) -> Entry | None:
        """An entry that another gateway made, or this one made and has dropped."""
        packed = await self._shared.get(composition.record.version, key)
        if packed is None:
            return None
        manifest = composition.artefact.manifest
        entry = unpack(packed, manifest.experts, manifest.categories)
        if entry is not None:
            self.local.put(key, entry)
        return entry

    def put(self, composition: LiveComposition, key: Key, entry: Entry) -> None:
        self.local.put(key, entry)
        if not self._shared.capacity:
            return
        manifest = composition.artefact.manifest
        packed = pack(entry, manifest.experts, manifest.categories)
        if packed is not None:
            self._shared.put(composition.record.version, key, packed)
