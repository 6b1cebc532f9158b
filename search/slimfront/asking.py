"""What is asked of a study from Python, as the options of the command that does the same."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Self

from search.command_line import parser
from search.command_parser import Parser
from search.study.budget_clock import now
from search.study.errors import UserError
from search.study.spec import StudySpec
from search.study.stored import started_with

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

COMMAND_OR_OPTION = re.compile(r"(slimfront [a-z]+ [^;]*)|--([a-z]+(?:-[a-z]+)*)")
FLAGS = "replace", "dynamic-size", "preprocessing"  # options without a value
AGAIN = "the same call"  # what continues a run


def in_python(message: str) -> str:
    """Return a message with the options of the command line as arguments of Python; whole commands stay as they are.

    >>> in_python("name another folder with --out, or overwrite it with --replace; see slimfront export --help")
    'name another folder with out=..., or overwrite it with replace=True; see slimfront export --help'
    """

    def argument(found: re.Match[str]) -> str:
        command, option = found.groups()
        value = "True" if option in FLAGS else "..."
        return command or f"{option.replace('-', '_')}={value}"

    return COMMAND_OR_OPTION.sub(argument, message)


class _Asked(Parser):
    """A parser that raises its errors, in which options have their names in Python."""

    def error(self, message: str) -> NoReturn:
        """Raise the message."""
        option, colon, rest = " ".join(message.split()).removeprefix("argument --").partition(":")
        raise UserError(f"{option.replace('-', '_')}{colon}{rest}")


@dataclass(frozen=True)
class Selection:
    """A study and the options that select it.

    Attributes
    ----------
    study
        The study, a function that returns it as the command line names it, or the folder of a stored one.
    settings
        The arguments of that function.
    options
        Options that all commands share, by their names in Python; None stands for the default.
    """

    study: object
    settings: Mapping[str, object] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)

    def of(self, command: str, **more: object) -> argparse.Namespace:
        """Return the options of a command for this study.

        Raises
        ------
        UserError
            If an option has a value that it does not take.
        """
        target = "spec" if isinstance(self.study, StudySpec) else str(self.study)
        words = [command, target, *(f"--set={name}={value}" for name, value in self.settings.items())]
        for name, value in {**self.options, **more}.items():
            option = f"--{name.replace('_', '-')}"
            if value is True:
                words.append(option)
            elif value is not None and value is not False:
                words.append(f"{option}={value}")
        options = parser(_Asked).parse_args(words)
        if isinstance(self.study, StudySpec):
            options.study = self.study
        options.start, options.command_line = now(), AGAIN
        return options

    def in_folder(self, folder: Path) -> Self:
        """Return the selection of the same study, which is stored in this folder."""
        return replace(self, options={**self.options, "folder": folder})

    def loadable(self) -> Self:
        """Return the selection with the function that the study was run with, if it is named by its folder.

        Raises
        ------
        UserError
            If it was not run from a file.
        """
        if isinstance(self.study, StudySpec) or not Path(str(self.study)).is_dir():
            return self
        target, settings = started_with(Path(str(self.study)))
        return replace(self, study=target, settings=dict(setting.split("=", 1) for setting in settings))
