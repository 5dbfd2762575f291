"""The figures of a training report, in lines for a person."""

from collections.abc import Mapping
from typing import Any


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """The same lines for a training on this machine and for one that a server did."""
    lines = [
        f"prompts            {report['n_prompts']}, {report['n_scored']} with outcomes",
        f"categories         {len(report['categories'])}",
        f"category accuracy  {report['category_accuracy']:.3f} (out-of-fold)",
        f"calibration error  {report['calibration_error']:.3f}",
        f"sure of            {report['accepted_share']:.3f} of the prompts, "
        f"right on {report['accepted_accuracy']:.3f} of those",
    ]
    preferences = report.get("preferences")
    if preferences and preferences["accuracy"] is not None:
        lines.append(
            f"preferences        {preferences['n']}, "
            f"{preferences['accuracy']:.3f} of held-out ones foreseen"
        )
    if report.get("routed") is not None:
        lines += [
            f"routed             {report['routed']:.3f}",
            f"best single        {report['best_single']:.3f} ({report['best_single_expert']})",
            f"random             {report['random']:.3f}",
            f"oracle             {report['oracle']:.3f}",
            f"gain               {report['gain']:+.3f} "
            f"[{report['gain_low']:+.3f}, {report['gain_high']:+.3f}] over the best single expert",
        ]
    return lines
