"""The files of a report; test_page.py opens its page in a browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import pytest

from search.results.file_records import with_records
from search.results.report import report
from search.study.front import front
from search.study.marks import MARK
from tests.small_study import context, searched, study

if TYPE_CHECKING:
    from pathlib import Path

    from optuna import Study

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def found(home: Path) -> Study:
    return searched(study(9), home)


@pytest.fixture(scope="module")
def written(home: Path, found: Study) -> list[Path]:
    return report(found, context(study(9)), with_records(front(found), study(9).runtime, home), home, home / "report")


def test_the_returned_paths_are_the_files_of_the_report(home: Path, written: list[Path], found: Study) -> None:
    assert sorted([*written, home / "report" / MARK]) == sorted((home / "report").iterdir())
    names = {path.name for path in written}
    assert {"front.png", "front.html", "candidates.csv"} < names
    assert {f"plan-{trial.number}.png" for trial in front(found)} < names


def test_the_pictures_are_png_files(written: list[Path]) -> None:
    pictures = [path for path in written if path.suffix == ".png"]
    for path in pictures:
        content = path.read_bytes()
        assert content.startswith(PNG)
        assert len(content) > 5000


def test_the_table_has_every_finished_trial(home: Path, found: Study, written: list[Path]) -> None:
    table = pd.read_csv(home / "report" / "candidates.csv")
    assert list(table["number"]) == [trial.number for trial in found.trials]
    assert list(table["number"][table["on_front"]]) == sorted(trial.number for trial in front(found))
    trained = table[table["state"] == "trained"].set_index("number")
    for number, row in trained.iterrows():
        assert [row["top1"], row["size_bytes"]] == found.trials[int(str(number))].values  # noqa: PD011 - no pandas
    assert set(found.trials[0].params) < set(table.columns)


def test_a_report_can_be_written_again(home: Path, found: Study, written: list[Path]) -> None:
    assert (
        report(found, context(study(9)), with_records(front(found), study(9).runtime, home), home, home / "report")
        == written
    )
