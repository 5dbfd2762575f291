"""Where statistics stand in Redis, and for how long.

Counts: a hash for each minute and each hour, and one for all time, from group to cell. Decisions: a
stream, whose ids are the cursors; beside it, trimmed along, an index from decision to cursor, the
feedback, and keys with the prompts, where they are kept, which end by themselves.
"""

from composer.state import PREFIX

MINUTE, HOUR = 60, 3600
MINUTES_KEPT_S = 48 * HOUR
HOURS_KEPT_S = 90 * 24 * HOUR

_OWN = f"{PREFIX}stats:"
TOTALS = f"{_OWN}totals"
DECISIONS = f"{_OWN}decisions"
INDEX = f"{_OWN}index"
FEEDBACK = f"{_OWN}feedback"
PROMPT = f"{_OWN}prompt:"
BUCKET = f"{_OWN}at:"
SEQUENCE = f"{_OWN}sequence:"
SEQUENCE_KEPT_S = 7 * 24 * HOUR


def bucket_key(step: int, at: int) -> str:
    """The hash of the `step` seconds (a minute or an hour) that begin at `at`."""
    return f"{BUCKET}{step}:{at - at % step}"
