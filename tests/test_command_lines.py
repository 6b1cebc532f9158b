"""Every command line of the documents is executed, on a small study in the place of the one that it names.

`tests/test_documents.py` checks their words; the studies that they name are executed by `tests/test_studies.py`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from search.cli import main
from tests.test_cli import ROOT, STUDY, write
from tests.test_documents import LINES, typed

if TYPE_CHECKING:
    from pathlib import Path

# Lines that need more than a small study, and the tests that execute them.
ELSEWHERE = {
    "--engine ray": "test_ray.py",
    "--watch": "test_killed_commands.py",
    "--preprocessing": "test_ends.py",
    "--dynamic-size": "test_ends.py",
    "--sizes": "test_signatures.py",
    "--device cuda": "test_run.py",
    "slimfront init --network": "test_init.py",
    "slimfront --version": "test_wheel.py",
    "slimfront --help": "test_terminal.py",
}
FEW = {"--trials": "2", "--minutes": "0.1", "--cpu-seconds": "8", "--seeds": "1", "--workers": "2"}
GOAL = "1.2x smaller, lose at most 60 points"
DROPPED = "--set", "--storage"


def executable(line: str) -> tuple[str, ...] | None:
    """Return the words of a line for the small study; None for what the text only names, or another test executes."""
    if any(part in line for part in ELSEWHERE):
        return None
    command, *words = typed(line)[1:]
    if command == "completion":
        return command, *(words or ["bash"])
    if not words or command == "COMMAND":
        return None
    found, rest = [command, STUDY if ":" in words[0] or "/" not in words[0] else "runs/small"], iter(words[1:])
    for word in rest:
        value = "" if word == "--unverified" else next(rest)
        if word in DROPPED:
            continue
        found += [word, GOAL if word == "--goal" else FEW.get(word, value)] if value else [word]
    if command == "worker" and not {"--minutes", "--cpu-seconds", "--trials"} & {*found}:
        found += ["--trials", "2"]
    return tuple(found)


def executables() -> list[tuple[str, ...]]:
    """Return the different command lines, those that begin a study first."""
    found = {executable(line) for _, line in LINES if line.startswith("slimfront ")} - {None}
    order = ["run", "worker", "inspect", "front", "report", "confirm", "export", "completion"]
    return sorted((words for words in found if words), key=lambda words: (order.index(words[0]), words))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a study that was run, with and without a goal."""
    folder = tmp_path_factory.mktemp("lines")
    write(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run", STUDY, "--trials", "3"]) == 0
        assert main(["run", STUDY, "--trials", "3", "--folder", "runs/goal", "--goal", GOAL]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("words", executables(), ids=" ".join)
def test_a_command_line_runs(words: tuple[str, ...], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    replaced = ["--replace"] if words[0] == "export" else []
    own_folder = []
    if words[0] in {"run", "worker"} and "--folder" not in words:
        own_folder = ["--folder", "runs/" + re.sub(r"\W+", "-", "-".join(words))]  # a study of its own
    assert main([*words, *replaced, *own_folder]) == 0


def test_the_lines_are_of_every_command_and_the_others_are_executed_elsewhere() -> None:
    """The tests above would pass too if no line were found."""
    commands = {words[0] for words in executables()}
    assert commands == {"run", "worker", "inspect", "front", "report", "confirm", "export", "completion"}
    assert len(executables()) > 20
    for part, test in ELSEWHERE.items():
        word = re.findall(r"[a-z]{3,}", part)[-1]
        assert word in (ROOT / "tests" / test).read_text(), part
