"""Workers without a shared folder: weights are uploaded to a store, and downloaded where they are needed."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch
from optuna.trial import TrialState
from safetensors.torch import load_file

from search import Recipe
from search.evaluation.reference import bounded, teacher_file
from search.loop.run import run
from search.proposals.defaults import resolved
from search.results.confirm import confirm, confirmed_with, weights_of
from search.results.confirmed_elsewhere import bring
from search.results.export import verify_front
from search.results.recorded import restored
from search.study.errors import MachineFault, UserError
from search.study.front import front
from search.study.records import ARTIFACTS, ASKED, EPOCHS, STORE, WEIGHTS
from search.study.storage import open_study
from search.study.weights import Store, state_path
from tests.small_study import context, study, watched

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from optuna import Study


def worked(folder: Path, database: Path, trials: int, store: str = "") -> Study:
    """Work on a study as a worker of another machine does: with a folder of its own."""
    folder.mkdir(exist_ok=True)
    spec = resolved(study(trials))
    found = open_study(spec, folder, f"sqlite:///{database}", create=True)
    if store:
        found.set_user_attr(ARTIFACTS, store)
    run(found, bounded(found, context(spec)), folder)
    return found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a study that one machine has run: in `first`, with its store in `store`."""
    home = tmp_path_factory.mktemp("shared")
    worked(home / "first", home / "my.db", 4, f"file://{home}/store")
    shutil.copytree(home / "store", home / "kept")
    return home


@pytest.fixture
def home(shared: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(shared, tmp_path / "home")
    yield tmp_path / "home"
    shutil.copytree(shared / "kept", shared / "store", dirs_exist_ok=True)  # weights that this test found dominated


def opened(home: Path) -> Study:
    found = open_study(resolved(study(4)), home / "second", f"sqlite:///{home / 'my.db'}", create=False)
    for trial in front(found):
        assert trial.user_attrs[STORE].startswith("file://")
    return found


@pytest.fixture
def found(home: Path, shared: Path) -> Study:
    """Return the study as another machine opens it; its store is the one of `shared`."""
    (home / "second").mkdir()
    return opened(home)


def test_a_store_has_the_weights_of_the_front_under_their_checksum(home: Path, found: Study) -> None:
    digests = {trial.user_attrs[WEIGHTS] for trial in front(found)}
    assert {path.stem for path in (home / "kept").iterdir()} == digests


def test_another_machine_verifies_what_it_did_not_train(home: Path, found: Study) -> None:
    here, trial = home / "second", front(found)[0]
    other = context(study(4))
    reference = teacher_file(other.subject, other.spec.runtime, here)
    own, copied = (state_path(home / name, trial.number) for name in ("first", "second"))
    assert verify_front([(trial, copied)], other, here, reference) == []
    assert own.read_bytes() == copied.read_bytes()


def test_another_machine_exports_what_was_confirmed(home: Path, found: Study) -> None:
    first, here = (
        open_study(resolved(study(4)), home / name, f"sqlite:///{home / 'my.db'}", create=False)
        for name in ("first", "second")
    )
    trial = front(found)[0]
    records = confirm([trial], context(study(4)), home / "first", 2, study=first)
    first.set_user_attr("confirmed:../../0-seed0", {"values": {}, "recipe": {}})  # no name of ours
    bring(here, home / "second")
    weights = weights_of(home / "second", trial)
    assert weights.parent.name == "confirmed"
    assert not weights.exists()
    assert confirmed_with(weights, trial)["n"] == records[0]["n"] == 2
    restored(trial, context(study(4)), weights)
    assert weights.read_bytes() == weights_of(home / "first", trial).read_bytes()
    assert confirm([trial], context(study(4)), home / "second", 2, study=here) == records, "nothing is trained twice"
    written = {path.name for path in home.parent.rglob("*-seed*.json")}
    assert written == {f"{trial.number}-seed{number}.json" for number in range(2)}


def test_a_later_confirmation_replaces_that_of_another_machine(home: Path, found: Study) -> None:
    trial, later = front(found)[0], dataclasses.replace(study(4), confirmation=Recipe(2, 32))
    confirm([trial], context(study(4)), home / "first", 1, study=found)
    bring(found, home / "second")
    restored(trial, context(study(4)), weights_of(home / "second", trial))
    confirm([trial], context(later), home / "first", 1, study=found)
    bring(found, home / "second")
    weights = weights_of(home / "second", trial)
    assert not weights.exists(), "weights of the earlier recipe"
    restored(trial, context(study(4)), weights)
    assert weights.read_bytes() == weights_of(home / "first", trial).read_bytes()


def test_another_machine_continues_a_training(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = open_study(resolved(study(4)), home / "first", f"sqlite:///{home / 'my.db'}", create=False)
    trial = front(found)[0]
    while any(not one.state.is_finished() for one in found.trials):
        found.tell(found.ask(), state=TrialState.FAIL)
    found.enqueue_trial(trial.params, user_attrs={ASKED: 3})
    starts: list[dict[str, torch.Tensor]] = []
    trainings = watched(monkeypatch)
    monkeypatch.setattr("search.evaluation.trial.restore", lambda model, path, digest: starts.append(load_file(path)))
    worked(home / "second", home / "my.db", 5)
    assert [epochs for epochs, _ in trainings] == [3]
    assert len(starts) == 1
    assert all(torch.equal(starts[0][name], value)
               for name, value in load_file(state_path(home / "first", trial.number)).items())  # fmt: skip
    last = open_study(resolved(study(4)), home / "first", f"sqlite:///{home / 'my.db'}", create=False).trials[-1]
    assert last.user_attrs[EPOCHS] == 3
    assert Store(last.user_attrs[STORE]) == Store(trial.user_attrs[STORE]), "the store is kept with the study"


@pytest.mark.parametrize("fault", ["missing", "cut", "other"])
def test_a_damaged_copy_in_a_store_is_told_in_one_line(fault: str, home: Path, found: Study, tmp_path: Path) -> None:
    trial = front(found)[0]
    store = tmp_path / "broken"
    shutil.copytree(home / "kept", store)
    trial.user_attrs[STORE] = f"file://{store}"
    path = store / f"{trial.user_attrs[WEIGHTS]}.safetensors"
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-5] if fault == "cut" else b"0" * 99)
    message = r"cannot be had from the store file://.*; train it anew with: slimfront confirm STUDY --pick"
    with pytest.raises(UserError, match=message) as raised:
        restored(trial, context(study(4)), state_path(home / "second", trial.number))
    assert "\n" not in str(raised.value)
    assert not list((home / "second").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("url", "message"),
    [("ftp://host/folder", "must be file:///folder, s3://bucket/prefix or gs://bucket/prefix, but got"),
     ("file://host/folder", "must be file:///folder"), ("s3:///prefix", "must be file:///folder"),
     ("", "must be file:///folder"), ("folder", "must be file:///folder"),
     ("file:///proc/nothing", r"the store file:///proc/nothing cannot be used \(FileNotFoundError")],
)  # fmt: skip
def test_a_store_that_cannot_be_used_is_told_before_anything_is_trained(url: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Store(url).check()


def test_a_store_that_fails_is_a_fault_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / "0.safetensors").write_bytes(b"0")
    Store(f"file://{tmp_path}/store").check()
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(MachineFault, match=r"does not take .*0\.safetensors .*; all finished work is kept; run the"):
        Store(f"file://{tmp_path}/store").upload(tmp_path / "0.safetensors", "digest")


class Bucket(BaseHTTPRequestHandler):
    """A server of the part of S3 that is used: objects are put, read and deleted."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]] = {}

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding", "").startswith("aws-chunked"):
            size, _, rest = body.partition(b"\r\n")
            body = rest[: int(size.partition(b";")[0], 16)]
        self.objects[self.path.partition("?")[0]] = body
        self._answer(200)

    def do_GET(self) -> None:
        found = self.objects.get(self.path.partition("?")[0])
        missing = b"<Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>"
        self._answer(404, missing) if found is None else self._answer(200, found)

    def do_DELETE(self) -> None:
        self.objects.pop(self.path.partition("?")[0], None)
        self._answer(204)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anyone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    Bucket.objects.clear()
    yield Bucket.objects
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.filterwarnings("default")
def test_a_bucket_of_s3_is_a_store(bucket: dict[str, bytes], tmp_path: Path) -> None:
    pytest.importorskip("boto3", reason="s3:// needs the extra s3")
    store, path = Store("s3://weights/my/study"), tmp_path / "0.safetensors"
    store.check()
    assert not bucket
    path.write_bytes(b"trained" * 9)
    digest = "d5" * 32
    store.upload(path, digest)
    assert bucket == {f"/weights/my/study/{digest}.safetensors": b"trained" * 9}
    with pytest.raises(UserError, match=r"cannot be had from the store s3://weights/my/study: Damaged"):
        store.download(digest, tmp_path / "copy")
    store.remove(digest)
    assert not bucket


@pytest.mark.parametrize("scheme", ["s3", "gs"])
@pytest.mark.skipif(find_spec("boto3") is not None, reason="boto3 is installed")
def test_a_missing_library_is_told_with_the_extra_that_has_it(scheme: str) -> None:
    with pytest.raises(UserError, match=rf"install it: pip install 'slimfront\[{scheme}\]'"):
        Store(f"{scheme}://none/at-all").check()
