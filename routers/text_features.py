"""Cheap features of a text beside its embedding: what it is made of, and how it is laid out.

Sentence encoders tell topics apart and are nearly blind to form: whether a prompt offers options,
holds code, ends in a colon. Two kinds of features bring that back. Hashed n-grams of characters
and words (Weinberger et al. 2009), weighted by inverse document frequency and projected to a few
dimensions by latent semantic analysis (Deerwester et al. 1990); and counts of marks, digits and
openings. All of it ignores case and runs of white space, looks at a bounded part of the text, and
is done with whole-array arithmetic: about 0.15 ms a prompt.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.int32]
Hashes = NDArray[np.uint64]

BUCKET_BITS = 14
BUCKETS = 1 << BUCKET_BITS
HALF = 768
"""So many characters are looked at from either end of a long text."""

LIMIT = 3.0
"""Layout features are clipped to so many deviations, so that an odd text is no outlier."""

_GRAMS = (3, 5)
_PRIME = np.uint64(0x100000001B3)
_SALT = 0x9E3779B97F4A7C15
_POWERS = np.cumprod(np.full(2 * HALF + 8, _PRIME, dtype=np.uint64))
_MARKS = "?.,:;()[]{}\"'=+-*/\\_$<>#%|&@!`"
_OPTION = re.compile(r"\b[a-d]\)|\b[a-d]\.\s|\([a-d]\)")
_QUESTION = re.compile(r"(who|what|when|where|which|how|why)\b")
N_FORMAT = 3 + len(_MARKS) + 7


def plain(text: str) -> str:
    """The part of a text that features are made of: folded, lower case, both ends of a long one."""
    if len(text) > 8 * HALF:
        # Bounds the work on a huge text before anything walks through it.
        text = f"{text[: 4 * HALF]} {text[-4 * HALF :]}"
    text = " ".join(text.split()).lower()
    if len(text) > 2 * HALF:
        text = f"{text[:HALF]} {text[-HALF:]}"
    return text


def format_features(text: str) -> Floats:
    """Layout of a plain text: lengths, marks, digits, options, opening and end, (N_FORMAT,)."""
    n = max(len(text), 1)
    words = text.count(" ") + 1
    features = [np.log1p(n), np.log1p(words), n / words]
    features += [min(text.count(mark), 20) / 5 for mark in _MARKS]
    features += [
        10 * sum(map(str.isdigit, text)) / n,
        10 * (len(text.encode("utf-8", "replace")) - n) / n,
        float(text.endswith("?")),
        float(text.endswith(".")),
        float(text.endswith(":")),
        float(_OPTION.search(text) is not None),
        float(_QUESTION.match(text) is not None),
    ]
    return np.array(features, dtype=np.float32)


def hashed_ngrams(text: str) -> tuple[Indices, Floats]:
    """Buckets of the n-grams of a plain text, ascending, and 1 + log of how often each occurs."""
    encoded = f" {text} ".encode("utf-8", "replace")
    data = np.frombuffer(encoded, dtype=np.uint8).astype(np.uint64) + np.uint64(1)
    hashes = [_char_hashes(data, n) for n in _GRAMS if len(data) >= n]
    words = _word_hashes(data)
    if words.size:
        hashes += [_mixed(words, 101), _mixed(words[:-1] * np.uint64(31) + words[1:], 211)]
    if not hashes:
        return np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float32)
    buckets = np.concatenate(hashes) >> np.uint64(64 - BUCKET_BITS)
    found, counts = np.unique(buckets, return_counts=True)
    return found.astype(np.int32), (1 + np.log(counts)).astype(np.float32)


def _char_hashes(data: Hashes, n: int) -> Hashes:
    count = len(data) - n + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(n):
        hashes = hashes * _PRIME + data[offset : offset + count]
    return _mixed(hashes, n)


def _word_hashes(data: Hashes) -> Hashes:
    """One hash for each run of letters and digits. Bytes are one too high (see `hashed_ngrams`)."""
    digit = (data >= 49) & (data <= 58)
    letter = ((data >= 98) & (data <= 123)) | (data > 128)
    inside = digit | letter
    at = np.flatnonzero(inside)
    if not at.size:
        return np.zeros(0, dtype=np.uint64)
    first = np.flatnonzero(np.diff(at, prepend=-2) > 1)
    position = np.arange(at.size) - np.repeat(first, np.diff(np.append(first, at.size)))
    powers = _POWERS[np.minimum(position, _POWERS.size - 1)]
    hashes: Hashes = np.add.reduceat(data[at] * powers, first)
    return hashes


def _mixed(hashes: Hashes, salt: int) -> Hashes:
    """Spread hashes over all bits (the finaliser of splitmix64)."""
    mixed = hashes + np.uint64(_SALT * salt % (1 << 64))
    mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return mixed ^ (mixed >> np.uint64(29))


@dataclass(frozen=True, slots=True)
class TextFeatures:
    """Learned scaling and projection of the features of a text.

    `idf` (BUCKETS,), `projection` (BUCKETS, n_topics), `centre` and `scale` (N_FORMAT,).
    """

    idf: Floats
    projection: Floats
    centre: Floats
    scale: Floats

    @property
    def dimension(self) -> int:
        return int(self.projection.shape[1]) + N_FORMAT

    def row(self, text: str) -> Floats:
        """Features of one text, (dimension,)."""
        text = plain(text)
        buckets, counts = hashed_ngrams(text)
        weights = counts * self.idf[buckets]
        norm = float(np.sqrt(weights @ weights))
        topics = (weights / max(norm, 1e-9)) @ self.projection[buckets]
        return np.concatenate([topics, self.layout(format_features(text))])

    def layout(self, raw: Floats) -> Floats:
        """Standardised layout features of raw ones (..., N_FORMAT), of a length of about 1."""
        scaled = np.clip((raw - self.centre) * self.scale, -LIMIT, LIMIT)
        found: Floats = (scaled / np.sqrt(N_FORMAT)).astype(np.float32)
        return found

    def rows(self, texts: Sequence[str]) -> Floats:
        """Features of n texts, (n, dimension)."""
        rows = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for i, text in enumerate(texts):
            rows[i] = self.row(text)
        return rows
