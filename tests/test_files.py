"""Files are written whole or not at all, and read back with their checksum."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from search.study.files import (
    CHECKSUM,
    Damaged,
    load_json,
    named_by_content,
    save_json,
    save_named_by_content,
    save_text,
    whole,
)
from search.study.weights import load_state, restore, save_state

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda parts: st.lists(parts) | st.dictionaries(st.text().filter(lambda name: name != CHECKSUM), parts),
    max_leaves=8,
)


@given(st.dictionaries(st.text().filter(lambda name: name != CHECKSUM), JSON))
def test_json_is_read_as_it_was_written(content: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_json(Path(folder) / "a.json", content)
        assert load_json(Path(folder) / "a.json") == content


def test_numbers_that_are_not_finite_and_keys_that_are_numbers_have_a_checksum(tmp_path: Path) -> None:
    save_json(tmp_path / "a.json", {"1": float("inf"), 2: "two"})  # type: ignore[dict-item]
    assert load_json(tmp_path / "a.json") == {"1": float("inf"), "2": "two"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-9], "is damaged: it is not JSON"),
        (lambda text: "", "is damaged: it is not JSON"),
        (lambda text: "\x00\xff" * 9, "is damaged: it is not JSON"),
        (lambda text: "[" * 100_000, "is damaged: it is not JSON"),
        (lambda text: "[1, 2]", "must hold a JSON object, but holds list"),
        (lambda text: "null", "must hold a JSON object, but holds NoneType"),
        (lambda text: text.replace("71.5", "86.5"), "its content differs from its checksum"),
        (lambda text: text.replace('"trial": 3', '"trial": 3, "more": 1'), "its content differs from its checksum"),
        (lambda text: re.sub('("checksum": ").*"', r'\g<1>0"', text), "its content differs from its checksum"),
        (lambda text: '{"trial": "three"}', "trial must be of type int, but is str"),
        (lambda text: "{}", "trial must be of type int, but is NoneType"),
    ],
)  # fmt: skip
def test_damaged_json_is_told_in_one_line(tmp_path: Path, damage: object, message: str) -> None:
    path = tmp_path / "record.json"
    save_json(path, {"trial": 3, "top1": 71.5})
    path.write_bytes(damage(path.read_text()).encode("latin-1"))  # type: ignore[operator]
    with pytest.raises(Damaged, match=message) as raised:
        load_json(path, {"trial": int})
    assert "\n" not in str(raised.value)


def test_json_of_version_0_1_has_no_checksum_and_is_read(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps({"trial": 3}, indent=1))
    assert load_json(tmp_path / "old.json", {"trial": int}) == {"trial": 3}


def test_a_file_that_is_not_finished_leaves_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    save_text(path, "first")
    with pytest.raises(KeyboardInterrupt), whole(path) as unfinished:  # noqa: PT012 - the block is what is tested
        unfinished.write_text("sec")
        raise KeyboardInterrupt
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("text.txt", "first")]


WRITER = """
import sys
from pathlib import Path
from search.study.files import save_json
print("ready", flush=True)
for turn in range(10**9):
    save_json(Path(sys.argv[1]), {"turn": turn, "long": [turn] * 20_000})
"""


def test_a_reader_sees_whole_files_whenever_the_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    for kill in range(4):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            until = time.monotonic() + 0.1 + 0.037 * kill
            while time.monotonic() < until:
                if path.exists():
                    content = load_json(path)
                    assert content["long"] == [content["turn"]] * 20_000
            writer.send_signal(signal.SIGKILL)
        assert load_json(path)["long"]


def test_weights_are_read_with_the_checksum_that_was_recorded(tmp_path: Path) -> None:
    net, path = nn.Linear(3, 2), tmp_path / "0.safetensors"
    digest = save_state(net, path)
    restore(other := nn.Linear(3, 2), path, digest)
    assert torch.equal(other.weight, net.weight)
    nn.init.zeros_(other.weight)
    save_state(other, path)
    with pytest.raises(Damaged, match=r"0\.safetensors is damaged: it differs from the checksum"):
        load_state(path, digest)
    assert load_state(path)["weight"].abs().sum() == 0, "version 0.1 recorded none"


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "header", "text"])
def test_damaged_weights_are_told_in_one_line_also_without_a_checksum(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "0.safetensors"
    save_state(nn.Linear(30, 20), path)
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-7], "empty": b"", "garbage": os.urandom(999), "text": b"a text\n",
                      "header": b"\xff" * 8 + content[8:]}[damage])  # fmt: skip
    with pytest.raises(Damaged, match="is damaged: it is no safetensors file") as raised:
        load_state(path)
    assert "\n" not in str(raised.value)


def test_the_weights_of_another_network_are_told_in_one_line(tmp_path: Path) -> None:
    save_state(nn.Linear(3, 2), tmp_path / "0.safetensors")
    for other in (nn.Linear(3, 3), nn.Conv2d(1, 1, 1), nn.ReLU()):
        with pytest.raises(Damaged, match="holds the weights of another network: ") as raised:
            restore(other, tmp_path / "0.safetensors")
        assert "\n" not in str(raised.value)


def test_a_file_named_by_its_content_is_made_anew_if_it_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(path: Path) -> None:
        path.write_text("the teacher")

    assert named_by_content(tmp_path, "teacher-1", ".onnx") is None
    path = save_named_by_content(tmp_path, "teacher-1", ".onnx", write)
    assert named_by_content(tmp_path, "teacher-1", ".onnx") == path
    assert named_by_content(tmp_path, "teacher", ".onnx") is None
    path.write_text("the tea")
    assert named_by_content(tmp_path, "teacher-1", ".onnx") is None
    assert "is damaged" in capsys.readouterr().err
    assert save_named_by_content(tmp_path, "teacher-1", ".onnx", write) == path
    assert [one.read_text() for one in tmp_path.iterdir()] == ["the teacher"]


def test_a_file_of_version_0_1_without_a_checksum_in_its_name_is_used(tmp_path: Path) -> None:
    (tmp_path / "teacher-1.onnx").touch()
    assert named_by_content(tmp_path, "teacher-1", ".onnx") == tmp_path / "teacher-1.onnx"
