"""Trials in a database: the URL as users type it, one short run, and what is missing."""

import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from search.cli import main
from search.study.database import database_url
from search.study.journal import storage_at


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "small.py").write_text((Path(__file__).parent / "small_study.py").read_text())
    monkeypatch.chdir(tmp_path)
    return "small.py:study"


def test_a_study_runs_on_postgresql_and_goes_on(
    study: str, postgresql: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", study, "--storage", postgresql, "--trials", "2", "--unverified"]) == 0
    assert main(["run", study, "--storage", postgresql, "--trials", "3", "--unverified"]) == 0
    assert not Path("runs/small/journal.log").exists()
    capsys.readouterr()
    assert main(["front", study, "--storage", postgresql.replace("postgresql:", "postgres:"), "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("trial,")
    stored = optuna.load_study(study_name="small", storage=storage_at(Path(), postgresql, create=False))
    assert len(stored.get_trials(states=[optuna.trial.TrialState.COMPLETE])) >= 3


@pytest.mark.parametrize(
    ("typed", "driver"),
    [
        ("postgresql://user:a%2Fb@host:5433/name?sslmode=require", "postgresql+psycopg"),
        ("postgres://user@host/name", "postgresql+psycopg"),
        ("postgresql+psycopg2://user@host/name", "postgresql+psycopg2"),
        ("sqlite:///file.db", "sqlite"),
    ],
)
def test_the_driver_is_psycopg_unless_another_is_named(typed: str, driver: str) -> None:
    url = database_url(typed)
    assert url.drivername == driver
    assert url.render_as_string(hide_password=False).partition("://")[2] == typed.partition("://")[2]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("postgresql+psycopg2://me:secret@host/name", 'pip install "slimfront[postgresql]"'),
        ("mysql://me:secret@host/name", "install the driver of mysql"),
        ("oracledb://me:secret@host/name", "must name a database that SQLAlchemy knows"),
        ("me:secret@host", "must be a URL such as"),
        ("postgresql://me:secret@host:port/name", "must be a URL such as"),
    ],
)
def test_what_is_no_usable_url_is_one_line_without_its_password(
    study: str, typed: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", study, "--storage", typed]) == 2
    printed = capsys.readouterr()
    *_, last = printed.err.splitlines()
    assert words in last
    assert "secret" not in printed.out + printed.err


def test_without_the_extra_one_line_names_it(study: str) -> None:
    words = ["run", study, "--storage", "postgresql://me@host/name"]
    code = f"import sys; sys.modules['psycopg'] = None; from search.cli import main; sys.exit(main({words}))"
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr
    assert 'pip install "slimfront[postgresql]"' in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
