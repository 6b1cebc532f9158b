"""The file that `slimfront init` writes: a study that runs as it is, and reads like an example of the documentation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from string import Template
from typing import TYPE_CHECKING, NamedTuple

from objectives.runtimes import named

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from search.commands.given_data import Data
    from search.commands.given_network import Given

LONGEST_LINE = 120  # characters
OURS, LIBRARIES = "slimfront", {"slimfront", "torch", "torchvision", "safetensors"}
ALWAYS = "BitWidths", "Macs", "PruneRatios", "Ranks", "Recipe", "SizeBytes", "Space", "StudySpec"  # imported
TEMPLATE = Template('''\
"""Small versions of $network, for the runtime $runtime.

slimfront run $file:study
"""

$imports
$space${before}\
def network():
    """Return the trained network."""
    $making
    return model


def splits():
    """Return the examples for training, validation and test."""
    $reading


def study():
    """Search for small networks that do well on the validation examples."""
    teacher, data = network(), splits()
    validation, runtime = data.validation, $made
    return StudySpec(
        name="$name",
        teacher=teacher,
        splits=data,
        space=Space(steps=(PruneRatios(), Ranks(), BitWidths(runtime=runtime)), recovery=$recovery),
        objectives=($metric, SizeBytes(runtime)),
        reported=(Macs(validation.example()),),
        recipe=Recipe(epochs=3),  # the training of a candidate
$goal\
        runtime=runtime,
    )
''')


class Task(NamedTuple):
    """What a network is trained for.

    Attributes
    ----------
    words
        What the labels are, for the user.
    recovery, metric
        Code of the recovery and of the first objective; `validation` is the split.
    names, others
        What the study imports for them: from slimfront, and from other modules.
    function
        The lines of a function that the metric calls.
    goal
        A usual goal.
    """

    words: str
    recovery: str
    metric: str
    names: tuple[str, ...]
    others: Mapping[str, tuple[str, ...]] = {}
    function: tuple[str, ...] = ()
    goal: str = "4x smaller, lose at most 1 point"


RIGHT_TAGS = (
    "def right_tags(outputs, labels):",
    '    """Return the percentage of tags that are right."""',
    "    return 100 * ((outputs > 0) == (labels > 0.5)).float().mean()",
)
MEAN_ERROR = (
    "def mean_error(outputs, labels):",
    '    """Return the mean distance of outputs and labels."""',
    "    return (outputs - labels).abs().mean()",
)
TASKS = {
    "classes": Task("one class for each example", "Temperatures()", "Top1(validation)", ("Temperatures", "Top1")),
    "maps": Task(
        "one class for each place of a picture, 255 for none", "Temperatures(ignore_index=255)",
        "Top1(validation, ignore_index=255)", ("Temperatures", "Top1"),
    ),
    "tags": Task(
        "several tags for each example, 0 or 1", "Imitations(loss=binary_cross_entropy_with_logits)",
        'Score(validation, "right_tags_percent", right_tags)', ("Imitations", "Score"),
        {"torch.nn.functional": ("binary_cross_entropy_with_logits",)}, RIGHT_TAGS,
    ),
    "numbers": Task(
        "numbers", "Imitations()", 'Score(validation, "mean_error", mean_error, "minimize")', ("Imitations", "Score"),
        function=MEAN_ERROR, goal="4x smaller",
    ),
    "unlabelled": Task("no labels: the teacher's answers alone", "Temperatures()", "Agreement(validation, teacher)",
                       ("Agreement", "Temperatures")),
}  # fmt: skip


@dataclass(frozen=True)
class Answers:
    """What a user has answered.

    Attributes
    ----------
    network, data
        See there.
    task
        A key of `TASKS`.
    runtime
        Name of the runtime.
    goal
        The goal in words, empty for none.
    """

    network: Given
    data: Data
    task: str
    runtime: str
    goal: str = ""

    def text(self, path: Path) -> str:
        """Return the file of the study."""
        task, network, data = TASKS[self.task], self.network, self.data
        plain = type(named(self.runtime))()
        made = f"{type(plain).__name__}()" if named(self.runtime) == plain else f'named("{self.runtime}")'
        code = "\n".join([*data.constants, *network.making, *data.lines, task.metric, made])
        constants = [*(["HERE = Path(__file__).parent"] if "HERE" in code else []), *data.constants]
        blocks = ["\n".join(block) for block in (constants, task.function) if block]
        return TEMPLATE.substitute(
            network=network.named.name, runtime=self.runtime, file=path.name, name=_name(path),
            imports="\n".join(self._imports(code)),
            before="".join(f"{block}\n\n\n" for block in blocks),
            space="\n" if constants else "\n\n",
            making="\n    ".join(network.making), reading="\n    ".join(data.lines),
            recovery=task.recovery, metric=task.metric, made=made,
            goal=f"        goal={_quoted(self.goal)},\n" if self.goal else "",
        )  # fmt: skip

    def _imports(self, code: str) -> list[str]:
        """Return the lines of the imports: of Python, of other packages, of the user."""
        task, own = TASKS[self.task], self.network.named
        modules: dict[str, set[str]] = {}
        wanted = [*self.data.imports.items(), *task.others.items(), (own.module, (own.name,))]
        wanted += [("safetensors.torch", ("load_file",))] * ("load_file(" in code) + [("torch", ())] * (
            "torch." in code
        )
        for module, names in wanted:
            modules.setdefault(module, set()).update(names)
        optional = [name for name in ("Examples", "Splits", "named") if re.search(rf"\b{name}[.(]", code)]
        runtime = [type(named(self.runtime)).__name__] * ("named" not in optional)
        modules[OURS] = {*ALWAYS, *task.names, *optional, *runtime}
        others = sorted(module for module in modules if module.partition(".")[0] in LIBRARIES)
        lines = ["from pathlib import Path", ""] * ("Path(" in code or "HERE" in code)
        for group in (others, sorted(modules.keys() - {*others})):
            lines += [f"import {module}" for module in group if not modules[module]]
            lines += [line for module in group if modules[module] for line in _from(module, sorted(modules[module]))]
            lines += [""] * bool(group)
        return lines[:-1]


def _from(module: str, names: list[str]) -> list[str]:
    line = f"from {module} import {', '.join(names)}"
    return (
        [line] if len(line) <= LONGEST_LINE else [f"from {module} import (", *(f"    {name}," for name in names), ")"]
    )


def _quoted(text: str) -> str:
    return repr(text) if '"' in text else f'"{text}"'


def _name(path: Path) -> str:
    """Return the name of the study: that of its file, with what a name may consist of."""
    return re.sub(r"[^A-Za-z0-9]+", "-", path.stem).strip("-") or "study"


def task_words() -> str:
    """Return the names of the tasks with what they are."""
    return "; ".join(f"{name}: {task.words}" for name, task in TASKS.items())
