"""The templates for schedulers in the documentation: their command lines are run as they stand, on another study."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from search.study.front import trained_count
from tests.several import ROOT, folder_of_study, opened

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (ROOT / "docs/pages/workers.md").read_text()
BUDGET = re.compile(r"(--minutes|--trials) \d+")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with folder_of_study(tmp_path) as found:
        yield found


def block(language: str, containing: str) -> str:
    """Return the one block of code on the page that contains this."""
    (found,) = [text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if containing in text]
    return str(found)


def run(folder: Path, words: list[str], storage: str) -> None:
    environment = os.environ | {
        "SLIMFRONT_STORAGE": storage,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "the budget is spent" in done.stderr
    assert trained_count(opened(folder, storage)) == 2


@pytest.mark.slow
def test_the_script_for_slurm_runs(folder: Path) -> None:
    storage = f"sqlite:///{folder}/trials.db"
    script = block("bash", "#SBATCH").replace("postgresql://user@host/studies", storage)
    (folder / "job.sh").write_text(BUDGET.sub("--trials 2", script))
    run(folder, ["bash", "job.sh"], storage)
    assert len(list((folder / "runs/my-net/candidates").iterdir())) >= 1


def test_the_job_for_kubernetes_runs(folder: Path) -> None:
    job = yaml.safe_load(block("yaml", "kind: Job"))
    assert job["apiVersion"] == "batch/v1"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["env"][0]["name"] == "SLIMFRONT_STORAGE"
    words = BUDGET.sub("--trials 2", " ".join(container["command"])).replace(
        "s3://bucket/my-net", f"file://{folder}/store"
    )
    run(folder, words.split(), f"sqlite:///{folder}/trials.db")
    assert list((folder / "store").iterdir())
