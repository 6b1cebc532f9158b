"""Text that fits a terminal: lines end between words, and a command stays one that can be copied."""

from __future__ import annotations

import contextlib
import shlex
import textwrap

INDENT = "  "  # of all lines but the first of a paragraph
COMMAND = ": slimfront "  # stands before a command that ends a message


def wrapped(text: str, width: int, indent: str = INDENT) -> str:
    r"""Return the text with lines of at most a width, but for longer words; each line of it is a paragraph.

    A command at the end of a paragraph that does not fit has lines of its own, which end with a backslash as shells
    want it.

    >>> print(wrapped("all work is kept; continue with: slimfront run my_study.py:study --trials 9", 40))
    all work is kept; continue with:
      slimfront run my_study.py:study \
        --trials 9
    """
    return "\n".join(_paragraph(line, width, indent) for line in text.split("\n"))


def _paragraph(line: str, width: int, indent: str) -> str:
    if len(line) <= width:
        return line
    before, found, command = line.rpartition(COMMAND)
    if found:
        with contextlib.suppress(ValueError):  # a text with an apostrophe is no command
            return f"{_filled(f'{before}:', width, indent)}\n{_command(command, width)}"
    return _filled(line, width, indent)


def _filled(text: str, width: int, indent: str) -> str:
    own = text[: len(text) - len(text.lstrip())]
    return textwrap.fill(
        text.strip(), width, initial_indent=own, subsequent_indent=own + indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _command(words: str, width: int) -> str:
    """Return a command over several lines."""
    lines = [f"{INDENT}slimfront"]
    for word in map(shlex.quote, shlex.split(words)):
        if len(lines[-1]) + len(word) + len(" \\ ") > width:
            lines.append(INDENT + INDENT + word)
        else:
            lines[-1] += f" {word}"
    return " \\\n".join(lines)
