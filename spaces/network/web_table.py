"""Tables for notebooks: short pieces of HTML that take fonts and colours from the page, whether it is light or dark."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MOST_SHOWN_ROWS = 24  # rows of a table in a notebook (chosen)
STYLE = (
    "<style>.slimfront table {border-collapse: collapse; background: none} .slimfront tr {background: none !important}"
    ".slimfront td, .slimfront th {text-align: left !important; vertical-align: top; padding: 2px 12px 2px 0;"
    " border-top: 1px solid rgba(128, 128, 128, 0.35)}</style>"
)


def web_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], notes: Iterable[str] = ()) -> str:
    """Return a title, a table and notes as HTML; what they say is shown as it is, whatever characters it has.

    Parameters
    ----------
    title
        What the table shows.
    columns
        The names of its columns; none if they need no names.
    rows
        Its cells; of long tables the first `MOST_SHOWN_ROWS` rows are shown.
    notes
        Sentences below it.
    """
    shown = [_row("td", row) for row in rows[:MOST_SHOWN_ROWS]]
    lines = [f"and {len(rows) - MOST_SHOWN_ROWS} more rows"] if len(rows) > MOST_SHOWN_ROWS else []
    below = "".join(f"<div>{_text(note)}</div>" for note in [*lines, *notes])
    table = "".join([_row("th", columns) if columns else "", *shown])
    return (
        f'{STYLE}<div class="slimfront" style="overflow-x: auto"><div><b>{_text(title)}</b></div>'
        f"<table>{table}</table>{below}</div>"
    )


def _row(kind: str, cells: Sequence[object]) -> str:
    return f"<tr>{''.join(f'<{kind}>{_text(cell)}</{kind}>' for cell in cells)}</tr>"


def _text(value: object) -> str:
    """Return a cell; whole numbers have all digits, others six."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return html.escape(str(value))
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.6g}"
