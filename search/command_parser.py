"""The parser of the command line, whose errors are one line with the way out. Nothing heavy is imported here."""

from __future__ import annotations

import argparse
import difflib
import re
import shutil
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from search.study.passwords import shown
from search.study.wrapping import wrapped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EXIT_ERROR, EXIT_STOPPED = 2, 130  # exit codes; shells report 130 for what Ctrl-C ended (128 + SIGINT)
OPTION = re.compile(r"--[a-z][a-z-]*")


class Parser(argparse.ArgumentParser):
    """A parser whose error messages are one line, without the usage.

    Attributes
    ----------
    commands
        The parsers of its commands, by their names.
    """

    commands: Mapping[str, argparse.ArgumentParser] = {}

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Return the options; one that the command does not know is an error of that command."""
        words = sys.argv[1:] if args is None else args
        found, unknown = self.parse_known_args(words, namespace)
        if unknown:
            command = next((self.commands[word] for word in words if word in self.commands), self)
            command.error(f"unrecognized arguments: {' '.join(unknown)}{_nearest(unknown, command)}")
        return found

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with code 2."""
        words = " ".join(map(shown, message.split()))
        line = f"slimfront: {words}; see {self.prog} --help"
        if sys.stderr.isatty():
            line = wrapped(line, shutil.get_terminal_size().columns)
        self.exit(EXIT_ERROR, f"{line}\n")


def _nearest(unknown: Sequence[str], command: argparse.ArgumentParser) -> str:
    """Return a sentence about the options that unknown ones may stand for, empty if there are none."""
    options = sorted({*OPTION.findall(command.format_usage())})
    given = [word.partition("=")[0] for word in unknown if word.startswith("--")]
    near: list[Any] = [one for word in given for one in difflib.get_close_matches(word, options, n=2)]
    return f"; the nearest {'are' if len(near) > 1 else 'is'} {' and '.join(near)}" if near else ""
