"""Local routing consistency: how few experts a stretch of requests needs.

After Liang et al., Not All Models Suit Expert Offloading (2025), who measure it for the experts of
a mixture-of-experts layer: the segment cache best hit rate is what a cache that is filled anew for
each segment, knowing it, can serve.
"""

from collections import Counter
from collections.abc import Sequence

SEGMENT = 100


def segment_hit_rate(experts: Sequence[str], cache: int, *, segment: int = SEGMENT) -> float:
    """Share of requests that go to the `cache` most asked experts of their segment.

    Segments are consecutive and of `segment` requests; the last may be shorter.
    """
    if not experts or cache < 1 or segment < 1:
        raise ValueError("requests, a cache and a segment of one or more are needed")
    served = 0
    for start in range(0, len(experts), segment):
        counts = Counter(experts[start : start + segment])
        served += sum(count for _, count in counts.most_common(cache))
    return served / len(experts)
