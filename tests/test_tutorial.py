"""The tutorial is a notebook without outputs; executed, it leads from a teacher to a file."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import nbclient
import nbformat
import pytest

from tests.installed import ROOT, for_processes

if TYPE_CHECKING:
    from pathlib import Path

TUTORIAL = ROOT / "docs" / "pages" / "tutorial.ipynb"
MOST_CPU_SECONDS = 60
LONGEST_LINE = 120


@pytest.fixture(scope="module")
def book() -> nbformat.NotebookNode:
    return nbformat.reads(TUTORIAL.read_text(), as_version=4)  # type: ignore[no-any-return, no-untyped-call]


def test_the_tutorial_has_no_outputs_and_short_lines(book: nbformat.NotebookNode) -> None:
    assert book.cells
    assert not [cell for cell in book.cells if cell.get("outputs") or cell.get("execution_count")]
    assert max(len(line) for cell in book.cells for line in cell.source.splitlines()) <= LONGEST_LINE


def test_the_tutorial_leads_from_a_teacher_to_a_file(
    book: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in for_processes().items():
        monkeypatch.setenv(name, value)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    nbclient.NotebookClient(book, timeout=280, resources={"metadata": {"path": str(tmp_path)}}).execute()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < MOST_CPU_SECONDS
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.output_type == "error"]
    texts = "".join(text for output in outputs for kind, text in output.get("data", {}).items() if "text" in kind)
    assert "tutorial: " in texts
    assert "% of the validation digits" in texts
    assert [output for output in outputs if "image/png" in output.get("data", {})]
    assert (tmp_path / "runs" / "tutorial" / "export" / "model.onnx").exists()
