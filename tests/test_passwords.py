"""Passwords in the URLs of storages appear nowhere: not in messages, commands to continue, tracebacks or files."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from search.cli import main
from search.command_line import parser, study_arguments
from search.study.passwords import shown, without_passwords
from tests import small_study

if TYPE_CHECKING:
    from pathlib import Path

STUDY = "my_study.py:study"
# URLs that hold a secret, the secret as it is written there, and what is shown.
URLS = {
    "a password": ("postgresql://me:hunter22@db:5432/s", "hunter22", "postgresql://me:***@db:5432/s"),
    "a driver": ("postgresql+psycopg://me:hunter22@db/s", "hunter22", "postgresql+psycopg://me:***@db/s"),
    "an encoded password": ("mysql://me:p%40s%3As%2Fw@db/s", "p%40s%3As%2Fw", "mysql://me:***@db/s"),
    "a raw at sign": ("postgresql://me:hunt@er22@db/s", "er22", "postgresql://me:***@db/s"),
    "a raw slash and colon": ("postgresql://me:hun/ter:22@db/s", "hun/ter:22", "postgresql://me:***@db/s"),
    "no user": ("redis://:hunter22@cache:6379/0", "hunter22", "redis://:***@cache:6379/0"),
    "a query": ("postgresql://db/s?user=me&password=hunter22", "hunter22", "postgresql://db/s?user=me&password=***"),
    "another query": ("mysql://me@db/s?ssl_key_PASSWORD=hunter22&x=1", "hunter22", "mysql://me@db/s?ssl_key_PASSWORD=***&x=1"),
    "both": ("postgresql://me:one1111@db/s?sslpassword=two2222", "two2222", "postgresql://me:***@db/s?sslpassword=***"),
    "a quote": ("postgresql://me:hunt'er\"22@db/s", "hunt'er\"22", "postgresql://me:***@db/s"),
    "a space": ("postgresql://me:hunter 22@db/s", "hunter 22", "postgresql://me:***@db/s"),
    "the user's name": ("postgresql://postgres:postgres@db/s", ":postgres@", "postgresql://postgres:***@db/s"),
    "a bad port": ("postgresql://me:hunter22@db:port/s", "hunter22", "postgresql://me:***@db:port/s"),
    "no host": ("postgresql://me:hunter22@/s", "hunter22", "postgresql://me:***@/s"),
    "no such scheme": ("nothing://me:hunter22@db/s", "hunter22", "nothing://me:***@db/s"),
    "a database that is not there": ("sqlite:////none/x.db?password=hunter22", "hunter22", "sqlite:////none/x.db?password=***"),
}  # fmt: skip


@pytest.mark.parametrize("case", URLS)
def test_a_url_is_shown_without_its_password(case: str) -> None:
    url, secret, wanted = URLS[case]
    assert shown(url) == wanted
    assert secret not in without_passwords(f"cannot connect to {url!r} as {secret!r}", url)


@pytest.mark.parametrize("url", ["postgresql://db:5432/s", "postgresql://me@db/s", "sqlite:///x.db", "runs/small", ""])
def test_a_url_without_a_password_is_shown_as_it_is(url: str) -> None:
    assert shown(url) == url
    assert without_passwords(f"cannot use {url} here", url) == f"cannot use {url} here"


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=4, max_size=20))
@example("****")
@settings(max_examples=150, deadline=None)
def test_no_form_of_any_password_stays_in_a_message(password: str) -> None:
    for written in (quote(password, safe=""), quote_plus(password)):
        url = f"postgresql://me:{written}@db/s"
        message = without_passwords(f"<{url}> <{written}> <{password}> <{password!r}> {json.dumps(password)}", url)
        left = message.replace(shown(url), "").replace("***", "")
        assert password.strip("*") not in left or set(password) <= {"*"}
        assert written.strip("*") not in left or set(password) <= {"*"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.study.database.LONGEST_OUTAGE_AT_START", 0.3)


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(small_study.__file__, tmp_path / "my_study.py")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", URLS)
@pytest.mark.parametrize("command", ["run", "front"])
def test_no_command_prints_the_password(
    workdir: Path, command: str, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url, secret, _ = URLS[case]
    assert main([command, STUDY, "--storage", url, "--debug"]) == 2
    printed = capsys.readouterr()
    assert secret not in printed.out + printed.err
    assert "Traceback" in printed.err
    assert printed.err.splitlines()[-1].startswith("slimfront: ")


def test_a_mistyped_option_does_not_show_the_password(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["front", STUDY, "--storge", "postgresql://me:hunter22@db/s"])
    printed = capsys.readouterr().err
    assert "unrecognized arguments: --storge postgresql://me:***@db/s" in printed


def test_lines_that_say_how_to_continue_hide_it(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("search.commands.searching.open_study", stop)
    for words in (["--storage", "mysql://me:hunter22@db/s"], ["--storage=mysql://me:hunter22@db/s"]):
        assert main(["run", STUDY, *words]) == 130
        printed = capsys.readouterr().err
        assert "continue with: slimfront run my_study.py:study" in printed
        assert "mysql://me:***@db/s" in printed
        assert "hunter22" not in printed


def test_the_storage_can_be_named_by_the_environment(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLIMFRONT_STORAGE", "sqlite:///here.db")
    assert main(["run", STUDY, "--trials", "1", "--unverified"]) == 0
    assert (workdir / "here.db").exists()
    assert not (workdir / "runs" / "small" / "journal.log").exists()
    assert "--storage" not in capsys.readouterr().err
    assert main(["front", STUDY, "--format", "csv"]) == 0
    monkeypatch.setenv("SLIMFRONT_STORAGE", "")
    assert parser().parse_args(["front", STUDY]).storage is None
    given = parser().parse_args(["front", STUDY, "--storage", "mysql://me:hunter22@db/s"])
    assert study_arguments(given) == "my_study.py:study --storage 'mysql://me:***@db/s'"


def test_files_of_a_study_do_not_hold_a_password_that_is_a_setting(workdir: Path) -> None:
    (workdir / "own.py").write_text("import my_study\n\ndef study(url):\n    return my_study.study(1)\n")
    words = ["own.py:study", "--set", "url=postgresql://me:hunter22@db/s"]
    assert main(["run", *words, "--unverified"]) == 0
    assert main(["front", *words]) == 0
    written = b"".join(path.read_bytes() for path in workdir.rglob("*") if path.is_file())
    assert b"hunter22" not in written
