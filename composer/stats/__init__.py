"""Statistics: figures by expert, category, composition and time; recent decisions; feedback.

A `Recorder` in each gateway worker counts in memory and commits to Redis about twice a second;
`Statistics` and `Decisions` read what all workers have committed.
"""

from composer.stats.decisions import Decisions
from composer.stats.feedback import give_feedback
from composer.stats.queries import Statistics
from composer.stats.recorder import Backlog, Recorder

__all__ = ["Backlog", "Decisions", "Recorder", "Statistics", "give_feedback"]
