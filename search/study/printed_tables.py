"""Print a table of results: as CSV or JSON, whole where there is no terminal, and fitted to the width of a terminal."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any

from rich.table import Table

from search.study.console import print_result, results_console
from search.study.wrapping import wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

GAP = 2  # spaces between two columns
WIDEST_TEXT = 30  # characters of a cell with words; longer ones are wrapped (chosen)
LEAST_ROWS = 2  # rows with a value; of fewer it says nothing that all values are the same
THOUSAND = 1000.0
PREFIXES = "", "k", "M", "G", "T"  # of SI units
UNIT_WORDS = "bytes", "ms", "percent", "nats", "lost"  # last words of names that are printed below the others
TEACHER_ROW = "teacher"  # first cell of the row that all others are compared with


def print_table(table: pd.DataFrame, output_format: str) -> None:
    """Print a table to standard output as `table`, `csv` or `json`; `table` lists the plans in words below it."""
    if output_format == "csv":
        results_console.file.write(table.to_csv(index=False))
        return
    if output_format == "json":
        results_console.file.write(table.to_json(orient="records", indent=1) + "\n")
        return
    narrow = table.drop(columns=["plan"], errors="ignore")
    if results_console.is_terminal:
        for drawing in _fitted(narrow, results_console.width):
            results_console.print(drawing)
    else:
        results_console.print(_whole(narrow), crop=False)
    if "plan" in table:
        results_console.print()
        for label, plan in zip(table.iloc[:, 0], table["plan"], strict=True):
            print_result(f"{label}: {plan}")


def print_json(content: dict[str, Any]) -> None:
    """Print one JSON object to standard output."""
    results_console.file.write(json.dumps(content, indent=1) + "\n")


def _whole(table: pd.DataFrame) -> Table:
    """Return all columns beside each other, with all digits."""
    drawing = Table(box=None, header_style="bold", pad_edge=False)
    for name in table.columns:
        drawing.add_column(name, overflow="fold", justify="right" if _is_number(table[name]) else "left")
    for row in table.itertuples(index=False):
        drawing.add_row(*(_cell(value) for value in row))
    return drawing


def _fitted(table: pd.DataFrame, width: int) -> Iterator[Table | str]:
    """Yield tables of at most a width, and a sentence about the columns that are the same for all rows.

    Each table has the first column. Columns without any value are left out.
    """
    members = table[table.iloc[:, 0] != TEACHER_ROW]
    same, columns = [], []
    for name in table.columns[1:]:
        values = [value for value in members[name] if not _is_empty(value)]
        if len(values) >= LEAST_ROWS and len(values) == len(members) and len(set(values)) == 1:
            same.append(f"{name} {_cell(values[0])}")
        elif values or not all(map(_is_empty, table[name])):
            columns.append(name)
    while columns:
        first, taken, used = table.columns[0], 0, _width(table, table.columns[0])
        for name in columns:
            used += GAP + _width(table, name)
            if taken and used > width:
                break
            taken += 1
        yield _part(table, [first, *columns[:taken]])
        columns = columns[taken:]
        if columns:
            yield ""
    if same:
        yield wrapped(f"The same for all: {', '.join(same)}.", width)


def _part(table: pd.DataFrame, names: list[str]) -> Table:
    """Return some columns beside each other, with short headings and numbers."""
    drawing = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0))
    for name in names:
        drawing.add_column(
            "\n".join(_heading(table, name)), justify="right" if _is_number(table[name]) else "left",
            width=_width(table, name), vertical="bottom",
        )  # fmt: skip
    for row in table[names].itertuples(index=False):
        drawing.add_row(*(short(value, name) for name, value in zip(names, row, strict=True)))
    return drawing


def _heading(table: pd.DataFrame, name: str) -> list[str]:
    """Return the lines of a heading: the words of a name, and below them its unit."""
    words = name.split("_")
    unit = [words.pop()] if words[-1] in UNIT_WORDS and len(words) > 1 else []
    longest = max(map(len, [*words, *unit, *_words_of(table, name)]))
    return [*textwrap.wrap(" ".join(words), longest), *unit]


def _width(table: pd.DataFrame, name: str) -> int:
    return max(map(len, [*_heading(table, name), *_words_of(table, name)]))


def _words_of(table: pd.DataFrame, name: str) -> list[str]:
    """Return the parts of a column's cells that are not wrapped: cells, and lines of those that are long."""
    cells = [short(value, name) for value in table[name]]
    return ["", *(line for cell in cells for line in _lines(cell))]


def _lines(cell: str) -> list[str]:
    return textwrap.wrap(cell, WIDEST_TEXT, break_long_words=False, break_on_hyphens=False)


def _is_number(column: pd.Series[float]) -> bool:
    return column.dtype.kind in "fi"


def _is_empty(value: object) -> bool:
    return value is None or value == "" or value != value  # noqa: PLR0124 - NaN


def _cell(value: object) -> str:
    """Return a cell of a table that is printed whole."""
    if _is_empty(value):
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= THOUSAND else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def short(value: object, name: str) -> str:
    """Return a value with at most four digits and the prefix of an SI unit, of bytes with the unit.

    >>> short(231_680.0, "macs"), short(9_856, "size_bytes"), short(0.0200712, "latency_ms")
    ('231.7 k', '9.9 kB', '0.02007')
    """
    if _is_empty(value):
        return ""
    unit = "B" if name.endswith("_bytes") else ""
    if isinstance(value, str) or not hasattr(value, "__float__"):
        return "\n".join(_lines(str(value)))
    number, power = float(value), 0
    while abs(number) >= THOUSAND and power < len(PREFIXES) - 1:
        number, power = number / THOUSAND, power + 1
    prefix = PREFIXES[power] + unit
    return f"{number:.1f} {prefix}" if power else f"{number:.4g} {prefix}".rstrip()
