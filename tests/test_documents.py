"""The documents: their command lines are real ones, their examples run, their links lead somewhere, the site builds."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import objectives
import search
import spaces
from objectives import runtimes
from search.command_line import parser
from spaces import testing
from spaces.testing import AxisContract
from tests.outside_axis import KernelSizes
from tests.small_study import study

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs/pages").rglob("*.md"))
FRONT_MATTER = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]  # what a host of repositories shows
DOCUMENTS = [*FRONT_MATTER, ROOT / "CHANGELOG.md", *PAGES, *sorted((ROOT / "studies").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`((?:[^`\n]|\n(?!\n))+)`")
STARTS = "slimfront ", "python -m ", "make ", "pip install "
README_WORDS = 2000
FETCHED = re.compile(r"""(?:\ssrc=|<link\s[^>]*href=)["']?([^"' >]+)""")
PICTURE_BYTES = 60_000
WIDEST = 120
EXAMPLES = {  # how each example begins, and the test that executes it; examples with >>> are doctests
    "# my_images.py": "test_bring_your_own.py",
    "# my_study.py": "test_bring_your_own.py",
    "from search.export import rebuild": "test_bring_your_own.py",
    "from dataclasses import replace\n\nfrom torchvision": "test_documents.py",
    "from spaces import BitWidths, PruneRatios, Ranks\nfrom spaces.testing": "test_documents.py",
    "from slimfront import inspect, load_study, run": "test_documents.py",
    "import optuna\nfrom optuna.storages": "test_optuna_natives.py",
    "from pathlib import Path\n\nfrom optuna.artifacts": "test_optuna_natives.py",
}


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


def blocks(document: Path, language: str) -> list[str]:
    return [text for found, text in FENCE.findall(document.read_text()) if found == language]


def command_lines(document: Path) -> list[str]:
    """Return the command lines in a document: lines of its blocks of commands, and code in its text."""
    text = document.read_text()
    found = (*blocks(document, ""), *blocks(document, "bash"))
    lines = [line for block in found for line in block.replace("\\\n", "").splitlines()]
    lines += re.findall(r"^# \w+\.py +(slimfront .*)", text, re.MULTILINE)
    lines += [" ".join(code.split()) for code in INLINE.findall(FENCE.sub("", text))]
    lines = [line.removeprefix("exec ") for line in lines]
    return [line for line in lines if line.startswith(STARTS) and "<" not in line.partition('"')[0]]


def typed(line: str) -> list[str]:
    """Return the words of a command line without its comment; what stands for a study or a number becomes one."""
    stand_ins = {"...": "STUDY", "N": "2"}
    return [stand_ins.get(word, word) for word in shlex.split(line, comments=True)]


LINES = [(name_of(document), line) for document in DOCUMENTS for line in command_lines(document)]


def the_lines(start: str) -> list[Any]:
    found = sorted({line: name for name, line in reversed(LINES) if line.startswith(start)}.items())
    return [pytest.param(line, id=f"{name}: {line}") for line, name in found]


def _commands() -> dict[str, Any]:
    (commands,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(commands.choices)


def _options_of(command: str) -> set[str]:
    return set(_commands()[command]._option_string_actions)


@pytest.mark.parametrize("line", the_lines("slimfront "))
def test_the_program_takes_the_command_line(line: str) -> None:
    _, *words = typed(line)
    if words[0] == "COMMAND":
        words[0] = "run"
    if not words[0].startswith("-"):
        assert words[0] in _commands()
        assert {word for word in words if word.startswith("--")} <= _options_of(words[0])  # none is abbreviated
    if len(words) == 1 and words[0] in _commands():  # the text speaks of the command
        return
    try:
        parser().parse_args(words)
    except SystemExit as end:
        assert not end.code  # noqa: PT017 - --help and --version end with 0


@pytest.mark.parametrize("line", the_lines("python -m "))
def test_the_module_and_its_options_exist(line: str) -> None:
    _, _, module, *words = typed(line)
    spec = importlib.util.find_spec(module)
    assert spec is not None
    if module.startswith("studies."):
        assert spec.origin is not None
        source = Path(spec.origin).read_text()
        for option in (word for word in words if word.startswith("--")):
            assert f'"{option}"' in source


@pytest.mark.parametrize("line", the_lines("make "))
def test_the_target_exists(line: str) -> None:
    target = typed(line)[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("line", the_lines("pip install "))
def test_the_extras_exist(line: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = re.findall(r"^(?:\.|slimfront)\[(.*)\]$", typed(line)[2])
    if wanted:
        assert set(wanted[0].split(",")) <= set(extras)
    else:  # a package that the tests use
        assert any(one.startswith(f"{typed(line)[2]}>=") for one in extras["dev"])


def test_documents_hold_command_lines_of_every_command() -> None:
    """The tests above would pass too if no line were found."""
    lines = [line for _, line in LINES]
    assert {typed(line)[1] for line in lines if line.startswith("slimfront ")} >= set(_commands())
    assert {typed(line)[1] for line in lines if line.startswith("make ")} >= {"demo", "test", "docs"}
    assert "slimfront export STUDY --io uint8,nhwc         # bytes" in "\n".join(lines)


@pytest.mark.parametrize("document", [*FRONT_MATTER, *PAGES], ids=name_of)
def test_every_example_is_executed(document: Path) -> None:
    for example in blocks(document, "python"):
        tests = [test for start, test in EXAMPLES.items() if example.startswith(start)]
        assert tests or ">>> " in example, example


def test_the_short_study_is_the_same_everywhere() -> None:
    (readme,) = blocks(ROOT / "README.md", "python")
    assert readme in blocks(ROOT / "docs/pages/network.md", "python")


def test_the_example_of_preprocessing_runs() -> None:
    (example,) = blocks(ROOT / "docs/pages/devices.md", "python")
    images, labels = torch.randint(0, 256, (4, 3, 300, 400), dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    names: dict[str, Any] = {
        "torch": torch, "mean": [0.5] * 3, "deviation": [0.2] * 3, "spec": study(1),
        "validation_images": images, "validation_labels": labels,
    }  # fmt: skip
    exec(example, names)  # noqa: S102 - of our own document
    assert names["spec"].preprocessing.module(images).shape == (4, 3, 224, 224)


def test_the_example_in_python_searches_and_loads_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = blocks(ROOT / "docs/pages/python.md", "python")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"study": dataclasses.replace(study(2), name="my-net")}
    short = example.replace("trials=40", "trials=2").replace("4x smaller, lose at most 1", "lose at most 60")
    again = '"runs/my-net"'
    assert again in short
    exec(short.replace(again, "study"), names)  # noqa: S102 - of our own document; an object has no file to load from
    assert len(names["result"].front) >= 1
    assert names["result"].folder == Path("runs/my-net")


def test_the_example_of_a_contract_is_a_test() -> None:
    (example,) = blocks(ROOT / "docs/pages/extending.md", "python")
    names: dict[str, Any] = {"KernelSizes": KernelSizes}
    exec(example, names)  # noqa: S102 - of our own document
    assert issubclass(names["TestKernelSizes"], AxisContract)
    assert dataclasses.is_dataclass(names["TestKernelSizes"].axis)


@pytest.mark.slow
def test_the_example_of_an_impossible_goal_shows_what_is_printed(tmp_path: Path) -> None:
    (example,) = (text for text in blocks(ROOT / "docs/pages/goals.md", "") if "9x smaller" in text)
    command, *shown = example.splitlines()
    words = [sys.executable, "-m", "search", *typed(command)[1:], "--folder", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    printed = " ".join(done.stderr.split())
    phrases = " ".join(" ".join(shown).split()).split(" ...")  # the document leaves out what the dots stand for
    assert len(phrases) > 3
    for phrase in phrases:
        assert phrase.strip(" ;") in printed


@pytest.mark.slow
def test_the_commands_for_a_server_run(tmp_path: Path) -> None:
    (lines,) = (text for text in blocks(ROOT / "docs/pages/devices.md", "") if "InferenceSession" in text)
    (tmp_path / "studies").symlink_to(ROOT / "studies")
    paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    script = lines.replace("--trials 30", "--trials 3")
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=tmp_path, env=os.environ | paths, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\['\w+', 1, 8, 8\]$", done.stdout, re.MULTILINE)  # any batch size


def test_the_readme_is_short_and_its_pictures_are_small() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.split()) < README_WORDS
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", readme)
    assert len(pictures) == 2
    for picture in pictures:
        assert 0 < (ROOT / picture).stat().st_size <= PICTURE_BYTES


@pytest.mark.parametrize("document", FRONT_MATTER, ids=name_of)
def test_links_lead_to_files_and_headings(document: Path) -> None:
    """Those between pages are checked by mkdocs, when it builds the site."""
    for link in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        path, _, anchor = link.partition("#")
        if path.startswith("https://"):
            continue
        assert (document.parent / path).exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)", (document.parent / path).read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as `make docs` does, in the environment of the tests and in a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    outer = "MAKEFLAGS", "MAKELEVEL", "MFLAGS"  # of a `make test`
    clean = {name: value for name, value in os.environ.items() if name not in outer}
    settings = f"BIN={Path(sys.executable).parent}", f"SITE={folder}"
    words = ["make", "-o", ".venv/.ready", "-o", ".venv/.docs", *settings, "docs"]
    done = subprocess.run(words, cwd=ROOT, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(PAGES)  # and a page for wrong addresses
    for page in pages:
        fetched = FETCHED.findall(page.read_text())
        assert len(fetched) > 2
        assert not [address for address in fetched if re.match(r"(\w+:)?//", address)]
        assert 'class="mermaid"' not in page.read_text()  # the theme would fetch what draws it
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text())


@pytest.mark.parametrize(
    ("page", "module"),
    [("search", search), ("objectives", objectives), ("runtimes", runtimes), ("spaces", spaces), ("testing", testing)],
)
def test_the_site_describes_every_public_name(site: Path, page: str, module: Any) -> None:
    text = (site / f"api/{page}.html").read_text()
    missing = [name for name in module.__all__ if f'id="{module.__name__}.{name}"' not in text]
    assert not missing


@pytest.mark.parametrize("document", [*FRONT_MATTER, *PAGES], ids=name_of)
def test_text_is_not_wide(document: Path) -> None:
    prose = FENCE.sub("", document.read_text()).splitlines()
    assert not [line for line in prose if len(line) > WIDEST and not line.startswith(("|", "!["))]


def test_every_page_says_first_what_it_gives() -> None:
    for page in PAGES:
        title, _, first, *_ = [*page.read_text().splitlines(), "", ""]
        assert title.startswith(("# ", '--8<-- "'))
        assert title.startswith("--8<--") or (first and not first.startswith(("#", "|", "`", ":", "!"))), page


def test_the_citation_names_the_project() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["title"] == project["name"]
    assert citation["license"] == project["license"]
    assert {"cff-version", "message", "authors", "abstract"} <= set(citation)
