"""Tables for a person, on a terminal or in a pipe."""

from collections.abc import Iterable, Sequence

PIPE_WIDTH = 1000


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under their columns; text is shown as it is, markup means nothing in it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        # In a pipe nothing is to be cut or wrapped at a terminal's width.
        console = Console(width=PIPE_WIDTH)
    console.print(table)
