"""Latencies in fixed buckets that grow by the same factor: small, mergeable, percentiles within 5%.

A bucket spans an eighth of a doubling, so a percentile read from it is off by at most
2 ** (1 / 16) - 1 = 4.4% (below `LOWEST_MS`: by that much in absolute terms).
"""

import math
from collections.abc import Mapping

LOWEST_MS = 0.01
BUCKETS = 216
"""The last bucket begins at 22 minutes."""

_PER_DOUBLING = 8


def bucket_of(ms: float) -> int:
    """Index of the bucket that holds `ms`; bucket 0 holds all up to `LOWEST_MS`."""
    if ms <= LOWEST_MS:
        return 0
    return min(int(math.log2(ms / LOWEST_MS) * _PER_DOUBLING) + 1, BUCKETS - 1)


def middle_of(bucket: int) -> float:
    """The value that stands for a bucket: its geometric middle, in ms."""
    if bucket == 0:
        return LOWEST_MS / 2
    return float(LOWEST_MS * 2 ** ((bucket - 0.5) / _PER_DOUBLING))


def percentile(counts: Mapping[int, int], share: float) -> float | None:
    """The value below which `share` of what was counted lies; None if nothing was."""
    rank = math.ceil(share * sum(counts.values()))
    for bucket in sorted(counts):
        rank -= counts[bucket]
        if rank <= 0 and counts[bucket] > 0:
            return middle_of(bucket)
    return None
