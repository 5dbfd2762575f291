"""What a conversation is routed on: the same for training data and for requests."""

from collections.abc import Sequence


def routing_text(turns: Sequence[tuple[str, str]]) -> str:
    """What the human asks now, of (role, text) turns: the last user turn that has text, else the
    last turn."""
    for role, text in reversed(turns):
        if role == "user" and text.strip():
            return text
    return turns[-1][1]
