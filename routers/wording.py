"""What of a prompt's text is routed on: white space folded, courtesies left out."""

import re

_WORD = re.compile(r"[^\W\d_]+(?:'[a-z]+)?", re.IGNORECASE)
_COURTESY = frozenset(
    _WORD.findall(
        """
        a ai also and answer anyone assist assistant be below bit can could day dear
        evening exercise following for good have hello help here hey hi i i'd if is it
        just kind kindly like love me morning my need on one please problem prompt query
        question quick request so solve some someone task thank thanks that the there
        these this to us want was will with wondering would you your
        """
    )
)
_ASKING = frozenset(("please", "help", "could", "can", "would", "kindly", "hello", "hi", "hey"))
_MAX_LEAD = 120
_LEAD = re.compile(r"[^:]{1,120}:\s+(?=\S)")


def normalise(text: str) -> str:
    """The text that is embedded and scored, for training data and requests alike.

    Runs of white space are folded. A lead-in of nothing but courtesies that ends in a colon ("Could
    you please help me with this: ...") is left out: it says nothing of what is asked, and would
    make all polite prompts alike.
    """
    text = " ".join(text.split())
    lead = _LEAD.match(text[: _MAX_LEAD + 2] + "." if len(text) > _MAX_LEAD + 2 else text)
    if lead is not None and is_courtesy(lead.group()):
        return text[lead.end() :]
    return text


def is_courtesy(lead: str) -> bool:
    """Whether a lead-in consists of stock words of asking for help, and nothing else."""
    words = [word.lower() for word in _WORD.findall(lead)]
    plain = re.sub(r"[\s\w',.!?:-]", "", lead) == "" and not any(c.isdigit() for c in lead)
    return plain and _COURTESY.issuperset(words) and not _ASKING.isdisjoint(words)
