"""The lock of the journal: held by one at a time, and never longer than its owner lives."""

import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from search.study.journal import KernelLock, journal_storage
from search.study.journal_file import mend_end

HOLD = """
import sys, time
from pathlib import Path
from search.study.journal import KernelLock

lock = KernelLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""

COUNT = """
import sys
from pathlib import Path
from search.study.journal import KernelLock

journal = Path(sys.argv[1])
lock = KernelLock(journal)
for _ in range(200):
    lock.acquire()
    journal.write_text(str(int(journal.read_text()) + 1))
    lock.release()
"""


@pytest.mark.parametrize("folder", ["", "runs/small"])
def test_a_killed_process_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.chdir(tmp_path)
    journal = Path(folder) / "journal.log"
    journal.parent.mkdir(parents=True, exist_ok=True)
    journal.write_text("")
    with subprocess.Popen([sys.executable, "-c", HOLD, str(journal)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"held\n"
        owner.kill()
    started = time.monotonic()
    mend_end(journal, KernelLock(journal))
    assert len(journal_storage(journal).get_all_studies()) == 0
    assert time.monotonic() - started < 5


def test_a_lock_that_an_older_version_left_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    journal = Path("journal.log")
    journal.write_bytes(b"incomplete")
    Path("journal.log.lock").symlink_to(journal)  # as Optuna's own lock, with a relative path
    mend_end(journal, KernelLock(journal))
    assert journal.read_bytes() == b""


def test_one_process_at_a_time_holds_it(tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    journal.write_text("0")
    workers = [subprocess.Popen([sys.executable, "-c", COUNT, str(journal)]) for _ in range(3)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0, 0]
    assert journal.read_text() == "600"


def test_another_process_waits_until_it_is_released(tmp_path: Path) -> None:
    first = KernelLock(tmp_path / "journal.log")
    first.acquire()
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "journal.log")], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert not select.select([other.stdout], [], [], 5)[0]
        first.release()
        assert other.stdout.readline() == b"held\n"
        other.kill()
