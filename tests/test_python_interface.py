"""slimfront from Python: the result of a run, its tables and pictures, its errors, and files with names of ours."""

from __future__ import annotations

import ast
import dataclasses
import html.parser
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import slimfront
import torch
from slimfront import LimitsUnmet, Result, UserError, load_study, rebuild, run

from search.cli import main
from search.study.console import console
from spaces import trace
from spaces.network.web_table import MOST_SHOWN_ROWS, web_table
from tests import small_study
from tests.installed import LINKS, ROOT, for_processes

OURS = "search", "spaces", "objectives"
MOST_SECONDS = 0.3  # CPU seconds that `import slimfront` may take


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run(small_study.study(), folder=tmp_path_factory.mktemp("study"), quiet=True)


class Reader(html.parser.HTMLParser):
    """Reads the rows of a table, and checks that all elements are closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.text, self._open = "", list[str]()
        self.feed(page)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data
        if self._open and self._open[-1] in {"td", "th"}:
            self.rows[-1][-1] += data


def test_the_stub_names_what_the_package_has() -> None:
    stub = (ROOT / "search" / "slimfront" / "__init__.pyi").read_text()
    assert sorted(ast.literal_eval(stub.partition("__all__ = ")[2])) == slimfront.__all__ == sorted(dir(slimfront))
    assert all(getattr(slimfront, name) is not None for name in slimfront.__all__)
    with pytest.raises(AttributeError, match="'slimfront' has no attribute 'Nothing'"):
        _ = slimfront.Nothing


def test_the_front_has_scalar_columns_of_the_names_that_a_pick_takes(result: Result) -> None:
    table = result.front
    assert {"trial", "top1", "size_bytes", "macs", "file_bytes", "file_latency_ms", "plan"} <= set(table)
    assert table["trial"].dtype.kind == "i"
    units = table.attrs["units"]
    assert [units[name] for name in ("top1", "size_bytes", "file_latency_ms", "macs")] == ["%", "B", "ms", ""]
    assert table["feasible"].all()
    assert table["file_feasible"].dtype == "boolean"
    assert all(pd.api.types.is_scalar(cell) for row in table.itertuples(index=False) for cell in row)
    assert list(table["top1"]) == sorted(table["top1"], reverse=True)
    assert set(table["trial"]) == {trial.number for trial in result.study.best_trials}
    assert set(result.teacher) == {"top1", "size_bytes", "macs"}


def test_the_candidates_are_all_trials(result: Result) -> None:
    table = result.candidates
    assert set(table["trial"]) == {trial.number for trial in result.study.trials if trial.state.is_finished()}
    assert set(table.loc[table["on_front"], "trial"]) == set(result.front["trial"])
    assert (table.loc[table["state"] == "trained", "cpu_seconds"] > 0).all()


def test_a_stored_study_gives_the_same_result_by_its_folder_and_by_its_spec(result: Result) -> None:
    for again in (load_study(result.folder), load_study(small_study.study(), folder=result.folder)):
        pd.testing.assert_frame_equal(again.front, result.front)
        assert again.folder == result.folder
        assert again.plot()._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"was not run from a file; name its StudySpec: load_study\(spec\)"):
        load_study(result.folder).plan(0)


def test_a_study_of_the_command_line_can_be_loaded_by_its_function_and_by_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(small_study.__file__, tmp_path / "my_study.py")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "my_study.py:study", "--set", "trials=2", "--unverified"]) == 0
    capfd.readouterr()
    by_name, by_folder = load_study("my_study.py:study", settings={"trials": 2}), load_study("runs/small")
    assert list(by_name.front["trial"]) == list(by_folder.front["trial"])
    assert by_folder.plan(0) == by_name.plan(0)
    more = run("my_study.py:study", settings={"trials": 2}, trials=3, quiet=True)
    assert (more.candidates["state"] == "trained").sum() == 3
    assert more.folder == by_folder.folder.relative_to(Path.cwd()) if by_folder.folder.is_absolute() else True
    assert capfd.readouterr().err == ""
    path = more.report()[0]
    assert path.parent == Path("runs/small/report")


def test_a_plan_is_the_one_of_its_trial(result: Result) -> None:
    number = int(result.front["trial"].iloc[0])
    assert result.plan(number).words() == result.front["plan"].iloc[0]
    with pytest.raises(UserError, match="no trial 99 has a plan; the numbers are 0 to "):
        result.plan(99)


def test_a_member_is_exported_as_a_file_that_was_verified(result: Result, tmp_path: Path) -> None:
    table = result.front
    number = int(table["trial"].iloc[-1])
    folder = result.export(pick=number, out=tmp_path / "out")
    record = json.loads((folder / "verification.json").read_text())
    assert (record["trial"], record["file_bytes"]) == (number, table["file_bytes"].iloc[-1])
    network = rebuild(small_study.Net(), folder)
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, small_study.CLASSES)
    with pytest.raises(UserError, match=r"is not empty|--replace"):
        result.export(out=folder)
    with pytest.raises(UserError, match="no member of the front has size_bytes<=1"):
        result.export("max top1 where size_bytes<=1", replace=True, out=folder)


@pytest.mark.slow
def test_a_confirmation_gives_mean_and_spread_as_numbers(tmp_path: Path) -> None:
    found = run(small_study.study(2), folder=tmp_path, quiet=True, verify=False)
    assert "file_bytes" in found.front
    assert found.front["file_bytes"].isna().all()
    table = found.confirm(seeds=2, pick="knee")
    assert list(table["trainings"]) == [2]
    assert {"size_bytes", "validation_top1_mean", "test_top1_mean", "test_top1_spread"} <= set(table)
    assert table.dtypes.map(lambda kind: kind.kind in "if").all()
    assert found.front["file_bytes"].notna().sum() == 1


def test_pages_escape_all_text_and_take_the_colours_of_the_page(result: Result) -> None:
    angry = dataclasses.replace(small_study.study(), goal="<script>alert('&')</script>")
    for shown in (angry, result, result.plan(0), trace(small_study.teacher(), torch.zeros(1, 1, 8, 8))):
        page = shown._repr_html_()
        assert "<script" not in page
        assert "color:" not in page.replace("background", "")
        assert len(Reader(page).rows) >= 3
    assert "<script>alert('&')</script>" in Reader(angry._repr_html_()).text
    rows = Reader(web_table("<b>", ("&",), [[f"<{number}>"] for number in range(MOST_SHOWN_ROWS + 5)])).rows
    assert rows[:2] == [["&"], ["<0>"]]
    assert len(rows) == MOST_SHOWN_ROWS + 1
    assert "and 5 more rows" in web_table("", (), [[0]] * (MOST_SHOWN_ROWS + 5))


def test_the_page_of_a_result_shows_the_teacher_and_the_front(result: Result, tmp_path: Path) -> None:
    names, teacher, *members = Reader(result._repr_html_()).rows
    assert names[:3] == ["trial", "top1", "size_bytes"]
    assert teacher[0] == "teacher"
    assert [int(row[0]) for row in members] == list(result.front["trial"])
    assert repr(result) == (
        f"<Result of small: {len(members)} members on the front, 4 candidates trained, in {result.folder}>"
    )


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no trials": ({"trials": 0}, "trials: must be a whole number from 1 to 1,000,000,000, but got '0'"),
    "no seconds": ({"cpu_seconds": "x"}, "cpu_seconds: must be a number from 0.001 to 1,000,000,000, but got 'x'"),
    "no goal": ({"goal": "as small as it gets"}, "'as small as it gets' cannot be read as a goal"),
    "no sampler": ({"sampler": "magic"}, "sampler: invalid choice: 'magic'"),
    "no runtime": ({"runtime": "abacus"}, "abacus"),
    "workers without a file": (
        {"workers": 2},
        r"must be a function of a file: run\('my_study.py:study'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_an_error_of_one_line(mistake: str, tmp_path: Path) -> None:
    options, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message) as caught:
        run(small_study.study(), folder=tmp_path, quiet=True, **options)
    assert "\n" not in str(caught.value)
    assert caught.value._render_traceback_() == [f"UserError: {caught.value}"]


def test_a_mistake_is_told_in_the_words_of_python(result: Result, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"contains other files .*; name another folder with out=\.\.\.$"):
        result.export(out=tmp_path / "export", replace=True)


def test_inspect_says_what_can_be_done_to_each_layer(tmp_path: Path) -> None:
    found = slimfront.inspect(small_study.study(), quiet=True)
    assert found.problem == ""
    assert found.teacher.keys() == {"top1", "size_bytes", "macs"}
    assert {"layer", "PruneRatios", "BitWidths"} <= set(found.layers)
    assert "can act on" in repr(found)
    head, *rows = Reader(found._repr_html_()).rows
    assert head[0] == "layer"
    assert len(rows) == found.layers["macs_percent"].notna().sum()
    impossible = slimfront.inspect(small_study.study(share=0.01), quiet=True)
    assert "cannot be met" in impossible.problem
    assert len(impossible.layers) == len(found.layers)
    assert not list(tmp_path.iterdir())


def test_limits_that_no_plan_meets_say_how_near_each_came(tmp_path: Path) -> None:
    with pytest.raises(LimitsUnmet, match=r"the limit macs <= .* cannot be met") as caught:
        run(small_study.study(share=0.01), folder=tmp_path, quiet=True)
    *details, last = caught.value._render_traceback_()
    assert details == caught.value.details
    assert last == f"LimitsUnmet: {caught.value}"


def test_what_is_not_stored_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no study in .*; start it .*, or name its folder with folder="):
        load_study(small_study.study(), folder=tmp_path)
    with pytest.raises(UserError, match="holds no study that can be read without its function"):
        load_study(tmp_path)


def test_a_run_leaves_the_process_as_it_was_and_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity(), torch.get_num_threads(), console.quiet
    optuna.logging.set_verbosity(optuna.logging.INFO)
    torch.set_num_threads(2)
    try:
        run(small_study.study(1), folder=tmp_path, quiet=True)
        assert (optuna.logging.get_verbosity(), torch.get_num_threads()) == (optuna.logging.INFO, 2)
        assert not console.quiet
    finally:
        optuna.logging.set_verbosity(before[0])
        torch.set_num_threads(before[1])
    assert capfd.readouterr() == ("", "")


def test_an_interrupted_run_returns_what_there_is_and_the_same_call_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(number: int) -> None:
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)

    small_study.watched(monkeypatch, interrupt)
    for count in (2, 4):
        found = run(small_study.study(4), folder=tmp_path, quiet=True, verify=False)
        assert (found.candidates["state"] == "trained").sum() == count


def test_messages_are_those_of_the_command_line_where_there_is_no_notebook(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.study.console.SILENT_SECONDS", 600.0)  # on a busy machine progress would come first
    run(small_study.study(1), folder=tmp_path)
    assert capfd.readouterr().err.startswith("teacher: top1 ")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with files of our names that must not be imported, and a study."""
    for name in OURS:
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('{name} of the user')\n")
    (tmp_path / "objectives").mkdir()
    (tmp_path / "objectives" / "__init__.py").write_text("raise RuntimeError('a folder of the user')\n")
    source = Path(small_study.__file__).read_text()
    source = source.replace("from search.", "from slimfront import UniformStart  # noqa\nfrom search.", 1)
    (tmp_path / "my_study.py").write_text(source)
    return tmp_path


def python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder that is also first among those where it looks for modules."""
    command = [sys.executable, "-W", "ignore", *words]
    environment = for_processes(folder)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("way", ["a line", "a file", "a module"])
def test_files_with_names_of_ours_are_not_imported(folder: Path, way: str) -> None:
    code = "from slimfront import Macs, Space, StudySpec, run\nimport objectives, search, spaces\n"
    (folder / "notebook.py").write_text(
        f"{code}print(objectives.__file__, search.__file__, spaces.__file__, sep='\\n')\n"
    )
    words = {"a line": ["-c", "import notebook"], "a file": ["notebook.py"], "a module": ["-m", "notebook"]}[way]
    done = python(folder, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(ROOT / name / "__init__.py") for name in ("objectives", "search", "spaces")]


@pytest.mark.slow
def test_a_run_in_a_folder_with_such_files_verifies_its_files_in_other_processes(folder: Path) -> None:
    (folder / "notebook.py").write_text(
        "from slimfront import run\nfrom my_study import study\n"
        "if __name__ == '__main__':\n    print(run(study(1), quiet=True).front['file_bytes'].min())\n"
    )
    done = python(folder, "notebook.py")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_the_command_line_is_safe_in_the_same_way(folder: Path, workers: str) -> None:
    done = python(folder, "-m", "slimfront", "run", "my_study.py:study", "--trials", "1", "--workers", workers)
    assert done.returncode == 0, done.stderr
    assert "file_top1" in done.stdout


@pytest.mark.parametrize("name", OURS)
def test_a_module_of_the_users_that_was_imported_before_is_named_with_the_way_out(tmp_path: Path, name: str) -> None:
    file = tmp_path / f"{name}.py"
    file.write_text("mine = 1\n")
    done = python(tmp_path, "-c", f"import {name}\nassert {name}.mine == 1\nimport slimfront")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: slimfront needs the name {name!r} for a package of its own, but {file} was imported under it "
        "before: rename that file, and start Python or the notebook's kernel again"
    )


def test_the_import_alone_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, time; start = time.process_time(); import slimfront; print(time.process_time() - start);"
        "print({'torch', 'optuna', 'pandas', 'numpy'} & set(sys.modules))"
    )
    seconds, heavy = python(LINKS, "-c", code).stdout.split()
    assert float(seconds) < MOST_SECONDS
    assert heavy == "set()"


@pytest.mark.slow
def test_a_notebook_shows_a_bar_and_nothing_else(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    (tmp_path / "my_net.py").write_text(Path(small_study.__file__).read_text())
    cells = [
        "from slimfront import run, UserError\nfrom my_net import study\nresult = run(study(2))",
        "result", "result.plot()", "result.plan(0)", "run(study(2), trials=0)",
    ]  # fmt: skip
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in for_processes().items():
            patch.setenv(name, value)
        client = nbclient.NotebookClient(
            book, timeout=200, resources={"metadata": {"path": str(tmp_path)}}, allow_errors=True
        )
        client.execute()
    ran, shown, plot, plan, mistake = (cell.outputs for cell in book.cells)
    assert [(output.output_type, output.get("text", "")) for output in ran] == [("display_data", "")]
    assert ran[0].data["text/html"] == ""  # the bar is gone
    assert "members on the front" in shown[0].data["text/html"]
    assert set(plot[0].data) >= {"image/png"}
    assert "PruneRatios" not in plan[0].data["text/html"]
    assert "Prune" in plan[0].data["text/html"]
    assert mistake[0].output_type == "error"
    assert mistake[0].traceback == ["UserError: trials: must be a whole number from 1 to 1,000,000,000, but got '0'"]
