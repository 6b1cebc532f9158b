"""What people see: in a real terminal of 80 columns, in pipes, and with the completion of their shell."""

from __future__ import annotations

import argparse
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pandas as pd
import pytest
import torch
from torchvision.models import mobilenet_v3_small

from objectives import Examples, Macs, SizeBytes, Top1
from search import Splits, StudySpec
from search.cli import main
from search.command_line import COMMANDS, parser
from search.evaluation.subject import Subject
from search.results.inspection import counted, inspection, refusals
from search.results.inspection_summary import summary
from search.study.character_plot import Mark, plot
from search.study.wrapping import wrapped
from spaces import BitWidths, PruneRatios, Ranks, Space, Temperatures
from tests import small_study
from tests.pseudo_terminal import COLUMNS, CTRL_C, Shown, environment, piped, shown

if TYPE_CHECKING:
    from pathlib import Path

STUDY = "my_study.py:study"
VARIANTS = """
import time, warnings
from my_study import study as small

def talks():
    print("this is from the study")
    warnings.warn("a warning of the study", stacklevel=1)
    return small()

def slow():
    time.sleep(4)
    raise ValueError("no data")
"""
WITH_STUDY = [name for name in COMMANDS if name not in {"init", "run", "worker"}]  # the last two take long
EVERY = [*COMMANDS, "completion"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with studies."""
    path = tmp_path_factory.mktemp("terminal")
    shutil.copy(small_study.__file__, path / "my_study.py")
    (path / "variants.py").write_text(VARIANTS)
    return path


@pytest.fixture(scope="module")
def searched(folder: Path) -> Shown:
    """Return what a run shows in a terminal."""
    return shown(folder, "run", STUDY, "--trials", "6")


def example_of(command: str) -> list[str]:
    """Return the example in the help of a command."""
    found = re.search(r"example:\s+slimfront (.*)", parser_of(command).format_help().replace("\\\n", " "))
    assert found
    return [STUDY if word == "studies/digits.py:study" else word for word in shlex.split(found[1])]


def parser_of(command: str) -> argparse.ArgumentParser:
    """Return the parser of a command."""
    commands = next(x for x in parser()._actions if isinstance(x, argparse._SubParsersAction))
    found: argparse.ArgumentParser = commands.choices[command]
    return found


def is_whole(shown_lines: list[str]) -> bool:
    """Whether no line is wrapped by the terminal."""
    return max(map(len, shown_lines)) <= COLUMNS


def test_a_run_shows_its_stage_its_budget_and_its_front(searched: Shown) -> None:
    assert searched.code == 0, searched.text
    assert is_whole(searched.lines)
    assert "─ study small ─" in searched.text
    for stage in (r"verifying \d onnx files? of", "6 of 6 candidates", "trial"):
        assert re.search(f"│ {stage}", searched.text)
    assert re.search(r"│ training trial \d", searched.text), "of some: a training may be over before it is drawn"
    assert re.search(r"│ [3-5] of 6 candidates, \d+ s left", searched.text)
    assert not re.search(r"│ [0-2] of 6 candidates, \d+ s left", searched.text), "too early to know"
    assert re.search(r"│ \s*\d+ .*│.*●", searched.text), "a row of the table, and a member in the plot beside it"
    assert searched.raw.rstrip().count("\x1b[?25l") == searched.raw.count("\x1b[?25h"), "the cursor is shown again"


@pytest.mark.parametrize("command", WITH_STUDY)
def test_the_example_of_the_help_runs_and_fits_the_terminal(command: str, folder: Path, searched: Shown) -> None:
    assert searched.code == 0
    words = example_of(command)
    found = shown(folder, *words)
    assert found.code == 0, found.text
    assert "csv" in words or is_whole(found.lines)


def test_no_word_of_the_front_is_cut(folder: Path, searched: Shown) -> None:
    assert searched.code == 0
    found, whole = shown(folder, "front", STUDY), piped(folder, "front", STUDY)
    assert is_whole(found.lines)
    assert max(map(len, whole.stdout.splitlines())) > COLUMNS
    plans, notes = whole.stdout.partition("\n\n")[2], whole.stderr
    assert plans
    assert set(f"{plans} {notes}".split()) <= found.words
    columns = set(whole.stdout.splitlines()[0].split())
    assert {word for name in columns - {"plan"} for word in name.split("_")} <= set(re.split(r"[\s_]+", found.text))
    assert re.search(r"^teacher +100 +3\.6 kB +14\.0 k", found.text, re.MULTILINE)
    assert "The same for all: " in found.text
    assert "● front, · other candidates, T teacher" in found.text


@pytest.mark.parametrize("command", ["", *EVERY])
def test_the_help_fits_the_terminal(command: str, folder: Path) -> None:
    found = shown(folder, *filter(None, [command]), "--help")
    assert found.code == 0
    assert is_whole(found.lines)
    if command in {*WITH_STUDY, "run", "worker"}:
        assert f"example: slimfront {command} studies/digits.py:study" in " ".join(found.text.split())
    if not command:
        assert all(re.search(rf"^  {code}  +\w", found.text, re.MULTILINE) for code in (0, 1, 2, 130))


@pytest.mark.slow
def test_ctrl_c_in_the_terminal_shows_how_to_continue(folder: Path) -> None:
    words = ["run", STUDY, "--trials", "40", "--unverified", "--folder", "stopped", "--set", "epochs=25"]
    found = shown(folder, *words, until="training trial 2", keys=CTRL_C)
    assert found.code == 130, found.text
    assert is_whole(found.lines)
    command = found.text.rpartition("continue with:")[2].partition("╭")[0].replace("\\\n", " ")
    assert shlex.split(command) == ["slimfront", *words]


@pytest.mark.slow
def test_what_takes_long_is_shown(folder: Path) -> None:
    found = shown(folder, "inspect", "variants.py:slow")
    assert found.code == 2
    assert "loading the study " in found.text


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        (["run", "--trials", "6"], {"trial", "top1", "file_bytes", "plan"}),
        (["front"], {"trial", "top1", "file_bytes", "plan"}),
        (["inspect"], {"layer", "macs_percent", "PruneRatios"}),
        (["confirm", "--seeds", "1"], {"trial", "n", "test_top1", "kept"}),
        (["report"], {"folder", "files"}),
        (["export", "--out", "json"], {"folder", "files", "verification"}),
    ],
)
def test_standard_output_is_one_json_document(
    words: list[str], fields: set[str], folder: Path, searched: Shown
) -> None:
    assert searched.code == 0
    if words[0] == "front":  # it knows a study by the words with which that was last run
        assert piped(folder, "run", "variants.py:talks", "--unverified", "-q").returncode == 0
    found = piped(folder, words[0], "variants.py:talks", *words[1:], "--format", "json", "-q")
    assert found.returncode == 0, found.stderr
    content = json.loads(found.stdout)
    assert fields <= set(content if isinstance(content, dict) else content[0])
    assert all((folder / content["folder"] / name).is_file() for name in content["files"]) if "files" in content else 1
    said = found.stderr.splitlines()
    assert len(said) == (0 if words[0] == "front" else 3), "front does not call the study"
    assert not said or said[0] == "this is from the study"
    assert not said or "UserWarning: a warning of the study" in said[1]


def test_a_report_lists_its_files_as_csv(
    folder: Path, searched: Shown, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert searched.code == 0
    monkeypatch.chdir(folder)
    assert main(["report", STUDY, "--format", "csv"]) == 0
    assert all((folder / name).is_file() for name in pd.read_csv(io.StringIO(capsys.readouterr().out))["file"])


def test_an_export_prints_its_numbers_as_csv(
    folder: Path, searched: Shown, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert searched.code == 0
    monkeypatch.chdir(folder)
    assert main(["export", STUDY, "--format", "csv", "--out", "csv"]) == 0
    (row,) = pd.read_csv(io.StringIO(capsys.readouterr().out)).to_dict("records")
    record = json.loads((folder / "csv" / "verification.json").read_text())
    assert row["file_bytes"] == record["file_bytes"]
    assert row["latency_cpu_ms"] == pytest.approx(record["latency"]["cpu_ms"])


def test_quiet_prints_results_and_errors_alone(folder: Path, searched: Shown) -> None:
    assert searched.code == 0
    found = piped(folder, "front", STUDY, "-q")
    assert found.stdout.startswith("trial ")
    assert found.stderr == ""
    found = piped(folder, "run", "nowhere.py:study", "-q")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("slimfront: no file nowhere.py")
    assert piped(folder, "front", STUDY, "-q", "-v").returncode == 2


def test_a_file_that_is_missing_is_told_before_torch_is_loaded(folder: Path) -> None:
    code = "import sys; from search.cli import main; main(['run', 'nowhere.py:study']); print('torch' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment(), capture_output=True, text=True, check=True
    )
    assert found.stderr.startswith("slimfront: no file nowhere.py; ")
    assert found.stdout == "False\n"


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], pytest.param(["--workers", "2"], marks=pytest.mark.slow)])
def test_verbose_shows_each_trial_and_each_file(words: list[str], folder: Path) -> None:
    found = piped(folder, "run", STUDY, "-v", "--trials", "6", "--folder", f"verbose{len(words)}", *words)
    assert found.returncode == 0, found.stderr
    said = found.stderr.splitlines()
    trained = [line for line in said if re.match(r"trial \d+: trained; size_bytes .*top1 .* CPU seconds; ", line)]
    assert len(trained) >= 4
    assert any(re.match(r"trial \d+: top-1 .* from the file", line) for line in said)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnx", "litert", "executorch", "openvino"])
def test_nothing_of_dependencies_is_shown(runtime: str, folder: Path, searched: Shown) -> None:
    assert searched.code == 0
    for words in (["inspect"], ["confirm", "--seeds", "0"], ["export", "--out", runtime], ["report"]):
        found = piped(folder, words[0], STUDY, *words[1:], "--runtime", runtime, "-q")
        assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("slimfront ", {*EVERY}),
        ("slimfront ex", {"export"}),
        ("slimfront export --pi", {"--pick"}),
        ("slimfront run my_study.py:study --sampler ", {"tpe", "nsga2", "gp", "random", "stratified"}),
        ("slimfront front my_study.py:study --runtime on", {"onnx"}),
        ("slimfront completion ", {"bash", "zsh", "fish"}),
        ("slimfront run my_st", {"my_study.py"}),
    ],
)
def test_bash_completes_commands_options_and_choices(typed: str, offered: set[str], folder: Path) -> None:
    script = f"""
        eval "$({shlex.quote(sys.executable)} -m search completion bash)"
        COMP_WORDS=({typed} {"''" if typed.endswith(" ") else ""})
        COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        function=$(complete -p slimfront | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        "$function" slimfront "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD - 1]}}"
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    found = subprocess.run(
        ["bash", "--norc", "-c", script], cwd=folder, env=environment(), capture_output=True, text=True, check=True
    )
    assert set(found.stdout.split()) == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_script_for_other_shells_names_every_command(shell: str, folder: Path) -> None:
    found = piped(folder, "completion", shell)
    assert found.returncode == 0
    assert all(re.search(rf"\b{command}\b", found.stdout) for command in EVERY)


ZSH = """
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'PS1=ready; fpath=({folder} $fpath); autoload -Uz compinit; compinit -u -d {folder}/dump; LISTMAX=9999'
zpty -w shell 'print compinit is done'
zpty -r -m shell out '*compinit is done*compinit is done*'
zpty -w -n shell $'slimfront run my_study.py:study --sampler \t'
zpty -r -m shell out '*tpe*'
print -r -- $out
zpty -d shell
"""


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish: apt-get install fish")
def test_fish_completes_options_and_choices(folder: Path) -> None:
    script = piped(folder, "completion", "fish").stdout
    for typed, offered in (("slimfront ex", {"export"}), ("slimfront run s --sampler ", {"tpe", "gp", "random"})):
        command = f"complete -C {shlex.quote(typed)}"
        found = subprocess.run(
            ["fish", "--no-config", "-c", f"{script}\n{command}"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        assert offered <= {line.partition("\t")[0] for line in found.stdout.splitlines()}


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh: apt-get install zsh")
def test_zsh_completes_choices_with_the_script_in_a_folder_of_functions(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "_slimfront").write_text(piped(folder, "completion", "zsh").stdout)
    script = ZSH.replace("{folder}", str(tmp_path))
    found = subprocess.run(
        ["zsh", "-f", "-c", script], cwd=folder, capture_output=True, text=True, timeout=60, check=True
    )
    assert {"tpe", "nsga2", "stratified"} <= set(re.findall(r"[a-z0-9]+", found.stdout))


def test_inspect_shows_a_network_of_54_layers_in_one_screen() -> None:
    network = mobilenet_v3_small(num_classes=10).eval()
    examples = Examples(torch.randn(32, 3, 64, 64), torch.randint(10, (32,)))
    space = Space(steps=(PruneRatios(), Ranks(), BitWidths()), recovery=Temperatures())
    spec = StudySpec(
        "wide", network, Splits(examples, examples, examples), space, calibration=8,
        objectives=(Top1(examples), SizeBytes()), reported=(Macs(examples.example()),),
    )  # fmt: skip
    subject = Subject(spec, torch.device("cpu"))
    table = inspection(spec, subject.anatomy, counted(subject.model, subject.example)[0])
    lines = wrapped("\n".join([*summary(table), *refusals(table)]), COLUMNS).splitlines()
    assert 20 <= len(lines) <= 34, "the teacher's values and the smallest plans have lines too"
    assert is_whole(lines)
    assert "BitWidths can act on 100.0% of the multiply-adds, 54 of 54 layers" in lines
    assert "  Ranks: 12% to 25-75% of the full rank, or all, as the layer allows" in lines


def test_a_plot_has_a_mark_where_each_point_is() -> None:
    lines = plot([Mark(1.0, 10.0, "a"), Mark(100.0, 20.0, "b"), Mark(10.0, 15.0, "c")], ("macs", "top1"), 31, 12)
    assert lines[0] == "top1"
    assert lines[1] == f"20 │{' ' * 26}b"
    assert lines[5] == f"   │{' ' * 13}c", "in the middle, since the axis is logarithmic"
    assert lines[9] == "10 │a"
    assert lines[10] == f"   └{'─' * 27}"
    assert lines[11].split() == ["1", "macs", "(log)", "100"]
    assert {len(line) <= 31 for line in lines} == {True}
