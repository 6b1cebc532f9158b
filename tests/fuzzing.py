"""Cases of bad input, drawn at random: damaged files, command lines, studies and plans, and what must hold for each."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.cli import UNEXPECTED, main
from search.export import rebuild
from search.study.errors import UserError
from tests import small_study

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from random import Random

STUDY = "my_study.py:study"
PAYLOAD = "payload-was-run"  # the file that a pickle writes which is loaded
LONGEST_CASE = 120  # seconds after which a case hangs
# Files of the user's, below the folders that slimfront writes to too.
OF_USER = (
    "my_study.py", "fuzzed.py", "notes.txt", "runs/small/mine.txt", "runs/small/candidates/mine.bin", "export/mine.csv",
)  # fmt: skip

FUZZED = '''
"""A study with one setting replaced."""
import dataclasses
import json

import torch
from torch import nn

from my_study import Net, splits, study as small, teacher
from objectives import Examples, Limit, Macs, Parameters, SizeBytes, Top1
from objectives.runtimes import OnnxRuntime
from search import Budget, DraftStart, Recipe, Splits
from spaces import BitWidths, Depth, Imitations, PruneRatios, Ranks, Resolution, Space, Temperatures

ODD = {
    "nan": float("nan"), "inf": float("inf"), "huge": 10**40, "negative": -3, "zero": 0, "half": 0.5, "true": True,
    "text": "text", "empty": "", "none": None, "list": [1, 2], "dict": {"a": 1}, "tuple": (), "bytes": b"\\x00\\xff",
    "object": object(), "class": Net, "function": len, "tensor": torch.zeros(2), "module": nn.Identity(),
    "nothing": nn.Sequential(), "newline": "two\\nlines", "path": "../../x", "unicode": "\\u202e\\u0000\\ud800",
}
DATA = {
    "labels beyond": lambda x, y: (x, y + 9), "labels negative": lambda x, y: (x, y - 1),
    "labels as floats": lambda x, y: (x, y.float()), "labels one-hot": lambda x, y: (x, torch.eye(4)[y]),
    "labels as columns": lambda x, y: (x, y[:, None]), "no labels": lambda x, y: (x, None),
    "nan": lambda x, y: (x * float("nan"), y), "zeros": lambda x, y: (x * 0, y), "one": lambda x, y: (x[:1], y[:1]),
    "doubles": lambda x, y: (x.double(), y), "bytes": lambda x, y: (x.to(torch.uint8), y),
    "wide": lambda x, y: (x.repeat(1, 1, 2, 2), y), "flat": lambda x, y: (x.flatten(1), y),
    "none": lambda x, y: (x[:0], y[:0]), "short": lambda x, y: (x, y[:-1]), "list": lambda x, y: (x.tolist(), y),
    "huge": lambda x, y: (x * 1e38, y), "complex": lambda x, y: (x.to(torch.complex64), y),
}
PARTS = {
    "recipe": Recipe, "budget": Budget, "start": DraftStart, "runtime": OnnxRuntime, "prune": PruneRatios,
    "ranks": Ranks, "bits": BitWidths, "size": Resolution, "depth": Depth, "recovery": Temperatures,
    "imitation": Imitations,
}


def study(part: str = "study", name: str = "seed", value: str = "zero", split: str = "train"):
    """Return the study with an odd value in one place."""
    spec = dataclasses.replace(small(1), limits=())
    if part == "data":
        old = getattr(splits(), split)
        data = Examples(*DATA[value](old.inputs, old.labels))
        return dataclasses.replace(spec, splits=dataclasses.replace(splits(), **{split: data}))
    if part == "study":
        return dataclasses.replace(spec, **{name: ODD[value]})
    if part == "limit":
        return dataclasses.replace(spec, limits=(Limit(Macs(splits().validation.inputs), **{name: ODD[value]}),))
    if part == "inside":
        return dataclasses.replace(spec, **{name: (ODD[value],)})
    made = PARTS[part](**{name: ODD[value]})
    if part in {"recipe", "budget", "start", "runtime"}:
        return dataclasses.replace(spec, **{part: made})
    if part in {"recovery", "imitation"}:
        return dataclasses.replace(spec, space=Space(steps=(PruneRatios(),), recovery=made))
    return dataclasses.replace(spec, space=Space(steps=(made,), recovery=Temperatures()))
'''
ODD = (
    "nan", "inf", "huge", "negative", "zero", "half", "true", "text", "empty", "none", "list", "dict", "tuple", "bytes",
    "object", "class", "function", "tensor", "module", "nothing", "newline", "path", "unicode",
)  # fmt: skip
DATA = (
    "labels beyond", "labels negative", "labels as floats", "labels one-hot", "labels as columns", "no labels", "nan",
    "zeros", "one", "doubles", "bytes", "wide", "flat", "none", "short", "list", "huge", "complex",
)  # fmt: skip
NAMES = {
    "study": (
        "name", "teacher", "splits", "space", "objectives", "limits", "reported", "recipe", "confirmation", "budget",
        "sampler", "start", "runtime", "calibration", "seed", "goal",
    ),
    "inside": ("objectives", "limits", "reported"),
    "limit": ("at_most", "at_least", "of_teacher", "lose_at_most"),
    "recipe": ("epochs", "batch_size", "learning_rate", "weight_decay", "optimizer", "augment"),
    "budget": ("trials", "minutes", "cpu_seconds"),
    "start": ("plans", "scored", "share"),
    "runtime": ("threads",),
    "prune": ("highest", "step", "round_to", "importance", "refit", "only"),
    "ranks": ("lowest", "step", "decomposition", "only"),
    "bits": ("weights", "activations", "grid", "only", "runtime"),
    "size": ("lowest", "step", "resize_in_file"),
    "depth": ("only", "refit"),
    "recovery": ("lowest", "highest", "heaviest", "ignore_index"),
    "imitation": ("norm", "loss"),
}  # fmt: skip


class Hang(BaseException):
    """A case that took too long."""


class Payload:
    """An object whose pickle writes a file when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(PAYLOAD),))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a case did: nothing is wrong if `fault` is empty."""

    kind: str
    words: str
    code: int | str
    fault: str
    printed: str = ""


def template(folder: Path) -> None:
    """Run, confirm and export the small study in a folder, and write files of the user's beside it."""
    shutil.copy(small_study.__file__, folder / "my_study.py")
    (folder / "fuzzed.py").write_text(FUZZED)
    with inside(folder):
        for words in (
            ["run", STUDY, "--trials", "3"],
            ["confirm", STUDY, "--seeds", "1", "--pick", "knee"],
            ["export", STUDY],
            ["export", STUDY, "--out", "export"],
        ):
            assert called(words)[0] == 0, called(words)
    for name in OF_USER[2:]:
        (folder / name).write_text(f"{name} is mine\n")


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Be in a folder; restore what commands change in this process."""
    before, path, modules = Path.cwd(), [*sys.path], {*sys.modules}
    os.chdir(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.chdir(before)
        sys.path[:] = path
        for name in {*sys.modules} - modules:
            if name.startswith(("slimfront_study", "my_study", "fuzzed")):
                del sys.modules[name]


def called(words: Sequence[str]) -> tuple[int | str, str]:
    """Run a command in this process; return its exit code, or what it raised, and what it printed to standard error."""
    errors, results = io.StringIO(), io.StringIO()

    def hang(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(LONGEST_CASE)
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(results):
            code: int | str = main(words)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else str(error.code)
    except BaseException as error:  # noqa: BLE001 - whatever a command lets through is a fault
        code = f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return code, errors.getvalue()


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the user's files that are there."""
    there = [name for name in OF_USER if (folder / name).is_file()]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in there}


def judged(kind: str, folder: Path, words: Sequence[str], act: Callable[[], tuple[int | str, str]]) -> Outcome:
    """Do something in a folder, and say what is wrong with what it did."""
    before = digests(folder)
    with inside(folder):
        code, printed = act()
    fault = ""
    if code not in {0, 1, 2, 130}:
        fault = f"ended with {code}"
    elif "Traceback" in printed and "--debug" not in words:
        fault = "a traceback"
    elif UNEXPECTED in printed:
        fault = printed[printed.index(UNEXPECTED) :].strip()
    elif code == 2 and not (printed.splitlines() or [""])[-1].startswith("slimfront: "):
        fault = "no line that says why"
    elif digests(folder) != before:
        fault = "a file of the user's was changed"
    elif (folder / PAYLOAD).exists():
        fault = "data was executed"
    elif unfinished := [path.name for path in folder.rglob(".*-*") if path.is_file()]:
        fault = f"an unfinished file was left: {unfinished[0]}"
    return Outcome(kind, " ".join(words), code, fault, printed)


def stored_file(random: Random, made: Path, folder: Path) -> Outcome:
    """Damage one stored file of a copy of the study, and run a command."""
    shutil.copytree(made, folder, symlinks=True)
    files = [path for path in sorted((folder / "runs").rglob("*")) if path.is_file()]
    path = random.choice([path for path in files if path.suffix not in {".txt", ".bin"}])
    damage = damaged(random, path)
    number = path.stem if path.parent.name == "candidates" else random.choice(["0", "1", "2"])
    commands = [
        ["front", STUDY], ["front", STUDY, "--format", "csv"], ["front", "runs/small"],
        ["front", "runs/small", "--format", "json"], ["front", STUDY, "--runtime", "openvino"],
        ["run", STUDY, "--trials", "3", "--unverified"],
        ["export", STUDY, "--pick", number, "--out", "export"], ["export", STUDY, "--pick", "knee", "--replace"],
        ["export", STUDY, "--pick", "max top1 where size_bytes<=1"], ["confirm", STUDY, "--seeds", "0", "--pick", "77"],
        ["inspect", STUDY],
    ]  # fmt: skip
    if random.random() < 0.05:  # these take seconds
        commands = [["report", STUDY], ["confirm", STUDY, "--seeds", "0"], ["run", STUDY, "--trials", "4"]]
    words = random.choice(commands if path.suffix != ".safetensors" else commands[5:8] or commands)
    return judged("stored files", folder, [str(path.relative_to(folder)), damage, *words], lambda: called(words))


def damaged(random: Random, path: Path) -> str:
    """Damage a file; return how."""
    content = path.read_bytes()
    way = random.choice([*WAYS, "folder", "missing", "loop"])
    if way in WAYS:
        path.write_bytes(WAYS[way](random, content) if content else b"")
        return way
    path.unlink()
    if way == "folder":
        path.mkdir()
        (path / "inside").write_text("x")
    elif way == "loop":
        path.symlink_to(path.name)
    return way


def _flipped(random: Random, content: bytes) -> bytes:
    flipped = bytearray(content)
    for _ in range(random.choice([1, 3, 50])):
        flipped[random.randrange(len(flipped))] ^= 1 << random.randrange(8)
    return bytes(flipped)


def _other_line(random: Random, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    at = random.randrange(len(lines))
    lines[at : at + 1] = random.choice([[], [b"x\n"], [lines[at]] * 2, [random.choice(KINDS).encode() + b"\n"]])
    return b"".join(lines)


KINDS = (
    "null", "[]", "{}", "3", '"text"', "true", "[" * 5000, "{" * 400 + "}" * 400, "1e999", "NaN", "-0",
    '{"a": 1, "a": 2}', "[null]", '{"name": null}', "\ufeff{}", "\x00", "{'a': 1}", "9" * 5000,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None,
    0,
    -1,
    1e308,
    10**40,
    "text",
    "",
    "../../x",
    [],
    {},
    [[]],
    {"a": None},
    True,
    float("nan"),
)


def changed(random: Random, content: bytes) -> bytes:
    """Return JSON, or lines of JSON, with one value removed or replaced; other content with its header cut off."""
    lines = content.splitlines(keepends=True)
    at = random.randrange(len(lines))
    for text, before, after in ((content, [], []), (lines[at], lines[:at], lines[at + 1 :])):
        try:
            found = json.loads(text)
        except ValueError:
            continue
        place, key = _place(random, found)
        if place is None:
            found = random.choice(VALUES)
        elif random.random() < 0.3:
            del place[key]
        else:
            place[key] = random.choice(VALUES)
        return b"".join([*before, json.dumps(found).encode() + b"\n", *after])
    return content[random.randrange(len(content)) :]


def _place(random: Random, found: Any) -> tuple[Any, Any]:
    """Return a random container of a tree of JSON, and a key or an index in it."""
    place, key = None, None
    while isinstance(found, dict | list) and found and (place is None or random.random() < 0.75):
        place = found
        key = random.choice(list(found) if isinstance(found, dict) else range(len(found)))
        found = found[key]
    return place, key


WAYS: dict[str, Callable[[Random, bytes], bytes]] = {
    "cut": lambda random, content: content[: random.randrange(len(content))],
    "empty": lambda *_: b"",
    "bits": _flipped,
    "garbage": lambda random, _: random.randbytes(random.choice([1, 8, 300])),
    "kind": lambda random, _: random.choice(KINDS).encode(),
    "pickle": lambda *_: pickle.dumps(Payload()),
    "line": _other_line,
    "value": changed,
}

WORDS = (
    STUDY, "my_study.py", "my_study.py:", ":study", "::", "my_study.py:_x", "my_study.py:Net", "nowhere.py:study",
    "json:loads", "json:nothing", "..:study", "runs/small", "runs", ".", "", "-", "--", "notes.txt:study", "export",
    "my_study:study", "fuzzed.py:study", "\udcff.py:study", "a" * 300 + ".py:study", "/dev/null", "os:getcwd",
    "[bold]:study",
)  # fmt: skip
TEXTS = (
    "", " ", "nan", "-inf", "0", "-1", "1e999", "3.5", "9" * 400, "x", "None", "\udcff", "\u202e", "'", '"', "%s",
    "{}", "$HOME", "[red]", "[/]", "../..", ".", "notes.txt", "notes.txt/x", "runs", "export", "my_study.py", "=",
    "a=b", "trials=", "trials=x", "trials=nan", "share=inf", "share=1e308", "epochs=0", "unknown=1", "=1", "a" * 5000,
    "sqlite:///notes.txt", "sqlite:///x/y.db", "sqlite://", "postgresql://a:secret@localhost:1/x",
    "journal://notes.txt", "journal://", "nothing://x", "://", "redis://x", "knee", "goal", "7", "max",
    "max top1 where", "min nothing", "max top1 where top1>=nan", "max top1 where size_bytes<=1e999",
    "max top1 where size_bytes<=x", "4x smaller", "lose -3 points", "0x smaller", "at most nan kB", "half the moon",
    "onnx", "litert",
)  # fmt: skip
OPTIONS = (
    "--trials", "--minutes", "--cpu-seconds", "--goal", "--unverified", "--out", "--seeds", "--pick", "--replace",
    "--set", "--folder", "--storage", "--sampler", "--runtime", "--seed", "--device", "--threads", "--format",
    "--debug", "--workers", "--unknown", "-x",
)  # fmt: skip


def command_line(random: Random, made: Path, folder: Path) -> Outcome:
    """Run a command with random words in a copy of the study."""
    shutil.copytree(made, folder)
    target = STUDY if random.random() < 0.75 else random.choice(WORDS)
    command = random.choice(["inspect", "run", "front", "front", "report", "confirm", "export", "export", "worker"])
    words = [command, target]
    for _ in range(random.choice([0, 1, 1, 2, 3])):
        option = random.choice(OPTIONS[6:18] if random.random() < 0.5 else OPTIONS)
        words += [option] if random.random() < 0.2 else [option, random.choice(TEXTS)]
    if command in {"run", "worker"}:
        words += ["--trials", "3"] + ["--unverified"] * (command == "run")
    if command in {"report", "confirm"} and random.random() < 0.8:
        words += ["--set", "share=0.5"]  # another definition, so that it ends before it draws or trains
    words = [word for word in words if "\x00" not in word]
    return judged("command lines", folder, words, lambda: called(words))


def definition(random: Random, made: Path, folder: Path) -> Outcome:
    """Run a study with an odd value in one place."""
    folder.mkdir()
    for name in OF_USER[:2]:
        shutil.copy(made / name, folder / name)
    if random.random() < 0.3:
        split = random.choice(["train", "validation", "test"])
        settings = ["part=data", f"value={random.choice(DATA)}", f"split={split}"]
    else:
        part = random.choice(["study", "study", "study", *NAMES])
        settings = [f"part={part}", f"name={random.choice(NAMES[part])}", f"value={random.choice(ODD)}"]
    words = ["run", "fuzzed.py:study", "--trials", "1", "--unverified"]
    words += [word for setting in settings for word in ("--set", setting)]
    return judged("studies", folder, words, lambda: called(words))


def plan(random: Random, made: Path, folder: Path) -> Outcome:
    """Rebuild a network from an export with a damaged file."""
    shutil.copytree(made, folder)
    export = folder / "runs/small/export"
    path = export / random.choice(["plan.json", "plan.json", "plan.json", "state.safetensors", "verification.json"])
    damage = changed_plan(random, path) if path.suffix == ".json" and random.random() < 0.6 else damaged(random, path)

    def act() -> tuple[int | str, str]:
        printed = io.StringIO()
        try:
            with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
                rebuild(small_study.Net(), export)
        except UserError as error:
            return 2, f"slimfront: {error}"
        except Exception as error:  # noqa: BLE001 - anything else is a fault
            return f"{type(error).__name__}: {error}", ""
        return 0, ""

    return judged("plans", folder, [str(path.relative_to(folder)), damage], act)


def changed_plan(random: Random, path: Path) -> str:
    """Change a value in a file of JSON."""
    path.write_bytes(changed(random, path.read_bytes()))
    return "value"


CASES = {"stored files": stored_file, "command lines": command_line, "studies": definition, "plans": plan}
