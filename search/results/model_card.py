"""The card beside an exported file: what it is, what it costs, how good it is, and how to load it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from objectives.objective import in_digits
from objectives.runtimes.image_sizes import size_words
from objectives.runtimes.loading import HasLoading, filled
from objectives.runtimes.signatures import HasSignatures
from search.results.file_at_sizes import SIGNATURES
from search.results.file_records import ARENA
from search.results.intervals import CONFIDENCE, of_share
from search.results.plots import draw_plan
from search.results.verification import OLDEST_VERSION
from search.study.attributes import numbers_of
from search.study.files import save_text
from search.study.machine import version_of
from search.study.machine import words as machine_words
from search.study.records import VALUES
from spaces.network.copying import unwrapped

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from optuna.trial import FrozenTrial

    from objectives.trees import Tree
    from search.evaluation.context import Context
    from spaces import Plan

CARD_FILE, PICTURE_FILE = "README.md", "plan.png"
LANGUAGES = {"python": "Python", "cpp": "C++", "kotlin": "Kotlin", "swift": "Swift"}
NO_LICENSE = "unknown"


def write_card(
    folder: Path,
    trial: FrozenTrial,
    plan: Plan,
    context: Context,
    record: dict[str, Any],
    inputs: Tree,
    confirmed: dict[str, Any],
    teacher: Mapping[str, float],
    license_name: str,
) -> None:
    """Write README.md and the picture of the plan into the folder of an export.

    Parameters
    ----------
    folder
        The folder.
    trial, plan, context
        The candidate, its plan, and the context of its study.
    record
        The content of verification.json.
    inputs
        One example as the file takes it.
    confirmed
        What `confirm` measured with these weights and with those of other seeds; empty if it did not.
    teacher
        What was measured on the teacher; empty if that is not known.
    license_name
        The license of the weights, empty if it was not said.
    """
    draw_plan(plan, context.subject.anatomy, f"{context.spec.name}, trial {trial.number}", folder / PICTURE_FILE)
    parts = [
        _front_matter(license_name),
        *_description(trial, context, record),
        *("## Plan", plan.words(), f"![the choices for each layer]({PICTURE_FILE})"),
        *("## Costs", _costs(trial, record, teacher)),
        *("## Accuracy", _accuracy(record, confirmed, teacher)),
        *_loading(context, record, inputs),
    ]
    save_text(folder / CARD_FILE, "\n\n".join(parts) + "\n")


def _front_matter(license_name: str) -> str:
    """Return the fields that registries of models read."""
    return f"---\nlicense: {' '.join(license_name.split()) or NO_LICENSE}\ntags: [slimfront, compression]\n---"


def _description(trial: FrozenTrial, context: Context, record: dict[str, Any]) -> list[str]:
    spec = context.spec
    given = type(unwrapped(spec.teacher)).__name__
    suffix, oldest = spec.runtime.suffix, record.get(OLDEST_VERSION)
    versions = f", version {oldest} or newer (the oldest that takes it, of those that were tried)" if oldest else ""
    goal = f" Its goal: {spec.goal}." if spec.goal else ""
    words = (
        f"`model.{suffix}` is {given}, made smaller by slimfront {version_of('slimfront') or '(a checkout)'} in the "
        f"study {spec.name!r} (seed {spec.seed}).{goal} Runtime: {spec.runtime.name}{versions}. It was verified from "
        f"the file, on: {machine_words(spec.runtime.name)}."
    )
    return [f"# {spec.name}, trial {trial.number}", words, "## Inputs and outputs", _ends(record)]


def _ends(record: dict[str, Any]) -> str:
    """Return what the file takes and gives."""
    inputs, outputs = record["file_inputs"], record["file_outputs"]
    rows = [("input", one) for one in inputs] + [("output", one) for one in outputs]
    for entry in record.get(SIGNATURES, ())[1:]:
        rows += [(f"input of `{entry['name']}`", one) for one in entry["file_inputs"]]
        rows += [(f"output of `{entry['name']}`", one) for one in entry["file_outputs"]]
    lines = ["| | type | shape of one example | codes |", "|---|---|---|---|"]
    for name, one in rows:
        shape = f"{one['shape']}{', ' + one['order'] if 'order' in one else ''}"
        codes = "none"
        if "scale" in one:
            zero = one["zero_point"]
            codes = f"number = (code {'-' if zero >= 0 else '+'} {abs(zero)}) x {one['scale']:.9g}"
        lines.append(f"| {name} | {one['type']} | {shape} | {codes} |")
    prepared = "Prepare the numbers of the inputs as in training."
    if "preprocessing" in record:
        prepared = f"The file prepares its inputs itself: `{record['preprocessing']}`."
    elif "transform" in record:
        prepared = f"Prepare the inputs as the validation data did:\n\n```\n{record['transform']}\n```"
    sizes = " Images may have other heights and widths, as far as network and runtime take them."
    sizes = sizes if record.get("dynamic_size") else ""
    names = ", ".join(f"{index} {name}" for index, name in enumerate(record.get("classes", ())))
    classes = f"\n\nClasses, in the order of the outputs: {names}." if names else ""
    return "\n".join(lines) + f"\n\n{prepared}{sizes}{classes}"


def _costs(trial: FrozenTrial, record: dict[str, Any], teacher: Mapping[str, float]) -> str:
    latency = record["latency"]
    measured = {name: value for name, value in numbers_of(trial, VALUES).items() if f"{name}_file" not in record}
    rows = {
        "bytes of the file": (f"{record['file_bytes']:,}", f"{record['teacher_file_bytes']:,}"),
        f"CPU time of one example, in ms, {latency['threads']} thread": (
            f"{latency['cpu_ms']:.3f} ({latency['ratio']:.2f} of the teacher's)", f"{latency['reference_cpu_ms']:.3f}",
        ),
        **({"bytes of RAM": (f"{record[ARENA]:,}", "")} if ARENA in record else {}),
        **{
            f"`{name}` (computed or measured in the search)": (in_digits(value), _known(teacher, name))
            for name, value in measured.items()
        },
    }  # fmt: skip
    lines = [f"| {name} | {own} | {teacher} |" for name, (own, teacher) in rows.items()]
    return "\n".join(["| | this network | its teacher |", "|---|---|---|", *lines])


def _accuracy(record: dict[str, Any], confirmed: dict[str, Any], teacher: Mapping[str, float]) -> str:
    """Return the metrics of the file with their number of examples, and what `confirm` measured."""
    count = record["samples"]
    sentences = []
    for key, value in record.items():
        if key.endswith("_file"):
            name = key.removesuffix("_file")
            interval = f" ({_interval(value, count)})" if name == "top1" else ""
            before = f"; teacher: {_known(teacher, name)}" if name in teacher else ""
            sentences.append(
                f"- `{name}` of the file: {value:.6g}{interval}, on the validation split, n = {count}{before}"
            )
    if record["agreement_percent"] is not None:
        sentences.append(f"- same class as the network in torch: {record['agreement_percent']:.2f}%, n = {count}")
    for name, values in confirmed.items():
        if isinstance(values, dict) and name.startswith("test_"):
            sentences.append(
                f"- `{name}` on the test split, measured in torch: {values['mean']:.6g}"
                f"{_spread(values['spread'], confirmed['n'])}"
            )
    if not confirmed:
        sentences.append("- the test split was not read; `slimfront confirm` does that")
    return "\n".join(sentences)


def _known(teacher: Mapping[str, float], name: str) -> str:
    return in_digits(teacher[name]) if name in teacher else ""


def _spread(spread: float, count: int) -> str:
    """Return the standard deviation over trainings, in words; one training has none."""
    if count == 1:
        return " (1 training)"
    return f" ± {spread:.2g} (mean and standard deviation of {count} trainings)"


def _interval(percent: float, count: int) -> str:
    """Return the interval of a share of `count` examples, in words."""
    low, high = of_share(percent, count)
    return f"{CONFIDENCE:.0%} interval {low:.2f} to {high:.2f}"


def _loading(context: Context, record: dict[str, Any], inputs: Tree) -> list[str]:
    runtime = context.spec.runtime
    if not isinstance(runtime, HasLoading):
        return []
    types = {name: record[f"file_{name}"][0]["type"] for name in ("inputs", "outputs")}
    note = f"// here float stands for {types['inputs']} in inputs and {types['outputs']} in outputs\n"
    notes = {"cpp": note, "kotlin": note, "swift": note} if set(types.values()) != {"float32"} else {}
    codes = [
        f"### {LANGUAGES.get(language, language)}\n\n```{language}\n{notes.get(language, '')}"
        f"{filled(code, inputs, record.get(ARENA, 0))}\n```"
        for language, code in runtime.loading.items()
    ]
    if SIGNATURES in record and isinstance(runtime, HasSignatures):
        own, other, *_ = record[SIGNATURES]
        zeros = [torch.zeros(1, *one["shape"], dtype=getattr(torch, one["type"])) for one in other["file_inputs"]]
        codes.append(
            f"### Other sizes, in Python\n\nThe entry points share their weights; `{own['name']}` is that of "
            f"{size_words(own['size'])}, which the lines above call.\n\n"
            f"```python\n{filled(runtime.signature_call, tuple(zeros), name=other['name'])}\n```"
        )
    return ["## Load it", *codes]
