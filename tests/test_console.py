"""Progress where there is no terminal: what takes over two seconds is told when it begins to take long."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from search.study.console import SILENT_SECONDS, console, step, track

if TYPE_CHECKING:
    import pytest


def test_what_takes_long_is_told_before_it_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert SILENT_SECONDS == 2
    monkeypatch.setattr("search.study.console.SILENT_SECONDS", 0.05)
    monkeypatch.setattr("search.study.console.EVERY_SECONDS", 0.0)
    with step("reading"):
        assert _said(capsys, "reading ...")
    assert capsys.readouterr().err == "reading: done in 0 s\n"
    with track("training") as progress:
        assert _said(capsys, "training ...")
        progress(0.25)
        assert capsys.readouterr().err.startswith("training: 25%, ")
        progress(2.0)
    assert capsys.readouterr().err == "training: done in 0 s\n"


def test_what_is_quick_is_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    with step("reading"):
        pass
    assert capsys.readouterr().err == ""


def test_one_of_many_workers_tells_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("search.study.console.SILENT_SECONDS", 0.01)
    monkeypatch.setattr(console, "leads", False)
    with step("reading"):
        time.sleep(0.2)
    assert capsys.readouterr().err == ""


def _said(capsys: pytest.CaptureFixture[str], line: str) -> bool:
    """Wait until a line is printed, for at most 20 seconds."""
    for _ in range(200):
        if capsys.readouterr().err == f"{line}\n":
            return True
        time.sleep(0.1)
    return False
