"""How a prompt becomes word pieces, and what is left out of a long one.

The policy is called `head-tail-256`, and its work is bounded whatever the input:

1. A text of more than 4,096 characters is cut to its first and its last 2,048 before anything
   looks at it. Ordinary text needs about 600 characters for the pieces kept on either side.
2. Of more than 254 word pieces the first 127 and the last 127 are kept. What a prompt wants stands
   at its beginning or at its end; between them lies the document it is about.
3. `[CLS]` and `[SEP]` go around, which makes at most 256 ids: the bound the model comes with.

Text that spells a special token, such as `[SEP]`, is text. A lone surrogate, which no encoding can
carry, becomes a question mark.
"""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

POLICY = "head-tail-256"
MAX_IDS = 256
MAX_CHARACTERS = 4096

_KEPT = (MAX_IDS - 2) // 2
_HALF = MAX_CHARACTERS // 2


class HeadTailTokenizer:
    """Word pieces of a text under the policy above; every backend tokenises with this class."""

    def __init__(self, tokenizer_file: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        # The ids around an empty text are [CLS] and [SEP].
        self._cls, self._sep = self._tokenizer.encode("").ids

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, between 2 and 256 of them."""
        # The batch call releases the interpreter lock; the call for one text holds it throughout.
        encodings = self._tokenizer.encode_batch_fast(
            [cut(text) for text in texts], add_special_tokens=False
        )
        return [[self._cls, *head_and_tail(encoding.ids), self._sep] for encoding in encodings]


def cut(text: str) -> str:
    """The text, or its first and last 2,048 characters with a space between them."""
    if len(text) > MAX_CHARACTERS:
        text = f"{text[:_HALF]} {text[-_HALF:]}"
    return text.encode("utf-8", "replace").decode("utf-8")


def head_and_tail(pieces: list[int]) -> list[int]:
    """The pieces, or the first and last 127 of them."""
    if len(pieces) <= 2 * _KEPT:
        return pieces
    return pieces[:_KEPT] + pieces[-_KEPT:]
