"""Pages with figures: what `coe eval` and `coe plan` write for people. Nothing is loaded from
elsewhere: the page works without a network."""

from collections.abc import Sequence
from html import escape
from typing import Any

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem;
       color: #1f2937; }
table { border-collapse: collapse; margin: 1rem 0; width: 100%; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #e5e7eb; text-align: right; }
th:first-child, td:first-child { text-align: left; }
th { color: #6b7280; font-weight: 500; }
.better { color: #047857; } .worse { color: #b91c1c; }
p.note { color: #6b7280; }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page around its parts (HTML)."""
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f"</title><style>{STYLE}</style>{_script()}</head>\n"
        f"<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain texts; a cell may begin with `+` or `-` to be coloured."""
    lines = ["<tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>"]
    for row in rows:
        lines.append("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>")
    return "<table>" + "".join(lines) + "</table>"


def bars(
    title: str, names: Sequence[str], means: Sequence[float], spans: Sequence[tuple[float, float]]
) -> str:
    """Horizontal bars with intervals."""
    import plotly.graph_objects as go

    figure = go.Figure(
        go.Bar(
            x=list(means),
            y=list(names),
            orientation="h",
            marker_color=["#059669" if mean >= 0 else "#dc2626" for mean in means],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [high - mean for mean, (_, high) in zip(means, spans, strict=True)],
                "arrayminus": [mean - low for mean, (low, _) in zip(means, spans, strict=True)],
            },
        )
    )
    figure.update_layout(
        title=title, height=120 + 28 * len(names), template="plotly_white", margin={"l": 140}
    )
    figure.update_yaxes(autorange="reversed")
    return _html(figure)


def lines(
    title: str, x_title: str, y_title: str, series: dict[str, Sequence[tuple[float, float]]]
) -> str:
    """Lines of (x, y) points by name."""
    import plotly.graph_objects as go

    figure = go.Figure(
        [
            go.Scatter(
                x=[x for x, _ in points],
                y=[y for _, y in points],
                mode="lines+markers",
                name=name,
            )
            for name, points in series.items()
        ]
    )
    figure.update_layout(title=title, template="plotly_white", height=420)
    figure.update_xaxes(title=x_title)
    figure.update_yaxes(title=y_title)
    return _html(figure)


def frontier_page(plans: Sequence[dict[str, Any]]) -> str:
    """The frontier of `coe plan`: quality against budget, and who is held."""
    chart = lines(
        "Expected score by memory budget",
        "budget (billions of parameters)",
        "expected score",
        {
            "expected": [(plan["budget_b"], plan["quality"]) for plan in plans],
            "95 % low": [(plan["budget_b"], plan["low"]) for plan in plans],
            "95 % high": [(plan["budget_b"], plan["high"]) for plan in plans],
        },
    )
    rows = [
        [
            f"{plan['budget_b']:g}",
            f"{plan['params_b']:.1f}",
            f"{plan['active_b']:.1f}",
            f"{plan['quality']:.3f}",
            f"{plan['low']:.3f} to {plan['high']:.3f}",
            ", ".join(plan["experts"]),
        ]
        for plan in plans
    ]
    head = ("budget", "held", "active", "quality", "95 %", "experts")
    return page("What each budget buys", [chart, table(head, rows)])


def _cell(text: str) -> str:
    kind = ""
    if text[:1] in "+-" and any(c.isdigit() and c != "0" for c in text):
        kind = ' class="better"' if text.startswith("+") else ' class="worse"'
    return f"<td{kind}>{escape(text)}</td>"


def _script() -> str:
    from plotly.offline import get_plotlyjs

    return f"<script>{get_plotlyjs()}</script>"


def _html(figure: Any) -> str:
    found: str = figure.to_html(full_html=False, include_plotlyjs=False)
    return found
