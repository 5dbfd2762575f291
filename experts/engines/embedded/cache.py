"""The key-value cache: one slot a running row, grown as rows need it."""

import torch
from torch import Tensor

from experts.engines.embedded.model import Geometry

_FIRST_CAPACITY = 256


class SlotCache:
    """Keys and values of all rows: two tensors (slots, kv_heads, capacity, head_dim) a layer.

    Slots and capacity start small and double up to their bounds, so that an engine that serves few
    short rows holds little memory. Unwritten places are zeros, never garbage: attention multiplies
    them by a weight of zero, and zero times NaN is NaN.
    """

    def __init__(self, geometry: Geometry, *, max_slots: int, max_capacity: int) -> None:
        self.geometry = geometry
        self.max_slots = max_slots
        self.max_capacity = max_capacity
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.slots = 0
        self.capacity = 0
        self.release()

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.keys) + sum(t.nbytes for t in self.values)

    def reserve(self, slots: int, length: int) -> None:
        """Make room for `slots` rows of `length` tokens; what is stored stays.

        Grows tensor by tensor: the peak is one layer's old tensor, and where memory runs out half
        way, the next call goes on from there.
        """
        new_slots = _grown(self.slots, slots, self.max_slots)
        new_capacity = _grown(self.capacity, length, self.max_capacity)
        if (new_slots, new_capacity) == (self.slots, self.capacity):
            return
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                if (old.shape[0], old.shape[2]) != (new_slots, new_capacity):
                    new = self._zeros(new_slots, new_capacity)
                    new[: old.shape[0], :, : old.shape[2]] = old
                    tensors[layer] = new
        self.slots, self.capacity = new_slots, new_capacity

    def release(self) -> None:
        """Give back all memory but the first allotment; everything stored is forgotten."""
        slots = min(2, self.max_slots)
        capacity = min(_FIRST_CAPACITY, self.max_capacity)
        if (slots, capacity) == (self.slots, self.capacity):
            return
        layers = range(self.geometry.layers)
        self.keys = [self._zeros(slots, capacity) for _ in layers]
        self.values = [self._zeros(slots, capacity) for _ in layers]
        self.slots, self.capacity = slots, capacity

    def clear(self, slot: int) -> None:
        """Overwrite a slot with zeros: needed when its row may have stored NaN."""
        for tensor in (*self.keys, *self.values):
            tensor[slot].zero_()

    def _zeros(self, slots: int, capacity: int) -> Tensor:
        g = self.geometry
        return torch.zeros(slots, g.kv_heads, capacity, g.head_dim, dtype=g.dtype)


def _grown(current: int, needed: int, bound: int) -> int:
    if needed > bound:
        raise ValueError(f"the cache was asked for {needed} where {bound} is its bound")
    while current < needed:
        current *= 2
    return min(current, bound)
