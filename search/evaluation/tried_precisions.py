"""Try the precisions that a runtime declares, in the places where a search would choose them, before it starts.

What a runtime executes can depend on what stands around a layer: a concatenation, a sum, a resize. A member of the
front whose file fails would show only after the whole budget was spent on its training.
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import optuna

from objectives.layers import inputs_of_file
from objectives.runtimes import ExportError
from objectives.runtimes.isolated_process import IsolatedProcess
from objectives.trees import at, moved
from search.evaluation.comparison import COMPARED, compared
from search.study.console import console, track
from search.study.cpu_profile import MEASURING
from search.study.errors import raise_machine_fault
from search.study.records import DESIGNS, DRAFT, FAILING, STARTED
from spaces import BitWidths, Quantize
from spaces.network.layers import FLOAT_BITS
from spaces.network.messages import first_line, listed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna import Study

    from objectives.runtimes import Runtime
    from objectives.trees import Tree
    from search.evaluation.context import Context
    from search.evaluation.subject import Subject
    from search.study.budget_clock import BudgetClock

    Pair = tuple[int, int]
    Widths = Mapping[str, Pair]

SLACK_DB = 10.0  # below what verification allows without classes: only gross faults count before training (chosen)
MOST_TRIES, MOST_SECONDS = 40, 600.0  # files, and wall seconds without a time budget (chosen)
TIME_SHARE = 0.1  # of a time budget that the tries may take (chosen)
FLOAT = (FLOAT_BITS, FLOAT_BITS)
OF_RUNTIME = "export", "load", "name", "suffix"  # what a runtime needs to be tried


def try_precisions(study: Study, context: Context, clock: BudgetClock | None = None) -> None:
    """Try the precisions of each axis on the teacher, once per study; those that fail are not offered.

    Tried are: every layer at its widest precision with the narrowest inputs, at its narrowest precision, and all
    precisions in turn, so that neighbors differ. Where a file fails twice, halves of the layers tell which ones are to
    blame. A study that began without the tries keeps what it offers, since parameters are places in that list.
    """
    if not _is_tried(study):  # hundreds of workers would wait for their turns
        with context.workers.turn("the tries of precisions"):
            if not _is_tried(study):
                found: dict[str, list[Pair]] = {}
                for axis in context.spec.space.steps:
                    if isinstance(axis, BitWidths) and all(hasattr(axis.runtime, name) for name in OF_RUNTIME):
                        with context.cpu_profile.charge(MEASURING):
                            for layer, pairs in _Tries(context.subject, axis, clock).failing().items():
                                found[layer] = list({*found.get(layer, []), *pairs})
                study.set_user_attr(FAILING, found)
    leave_out_failing(study, context.subject)


def _is_tried(study: Study) -> bool:
    """Return whether the tries are done, or it is too late: the study or its draft holds parameters already."""
    if FAILING in study.user_attrs:
        return True
    draft = study.study_name + DRAFT in optuna.get_all_study_names(storage=study._storage)  # noqa: SLF001 - no public name
    return draft or not {STARTED, DESIGNS}.isdisjoint(study.user_attrs) or bool(study.get_trials(deepcopy=False))


def leave_out_failing(study: Study, subject: Subject) -> None:
    """Leave out of the anatomy the precisions that failed when the study began."""
    stored = study.user_attrs.get(FAILING, {})
    subject.anatomy = subject.anatomy.without({name: map(tuple, pairs) for name, pairs in stored.items()})


class _Tries:
    """The tries of one axis on the teacher."""

    def __init__(self, subject: Subject, axis: BitWidths, clock: BudgetClock | None) -> None:
        self._subject, self._axis = subject, axis
        self._runtime: Runtime = axis.runtime  # type: ignore[assignment]  # it was asked for what is needed
        offered = axis.offered(subject.anatomy)
        self._with_floats = {name for name, pairs in offered.items() if FLOAT in pairs}
        self._offered = {name: [pair for pair in pairs if pair != FLOAT] for name, pairs in offered.items()}
        self._rest: dict[str, Pair] = {}  # what layers have that are not tried; floats where none is given
        self._worked: dict[str, set[Pair]] = {name: set() for name in offered}
        self._failed: dict[str, list[Pair]] = {}
        self._tries, self._started = 0, time.monotonic()
        timed = clock is not None and clock.timed
        self._most_seconds = clock.allowed(TIME_SHARE) if clock is not None and timed else MOST_SECONDS

    def failing(self) -> dict[str, list[Pair]]:
        """Return for each layer the pairs that fail; say what is left out and why."""
        sets = self._sets()
        with track(f"trying {len(sets)} sets of precisions on {self._runtime.name}") as progress:
            for done, widths in enumerate(sets, 1):
                if self._tries and self._is_over():
                    console.print(f"{len(sets) - done + 1} of {len(sets)} sets are not tried: the time is short")
                    break
                try:
                    if not self._try(widths):
                        break
                except (ExportError, ImportError) as error:
                    console.print(f"precisions are not tried: {first_line(error)}")
                    break
                if done == 1 and not self._failed and not self._with_floats:
                    self._rest = dict(widths)  # such a runtime is never given floats
                progress(done / len(sets))
        return self._failed

    def _sets(self) -> list[dict[str, Pair]]:
        """Return what is tried: the widest integers, the narrowest ones, and all precisions in turn."""
        offered = {name: pairs for name, pairs in self._offered.items() if pairs}
        widest = {name: min(pairs, key=lambda pair: (pair[1], -pair[0])) for name, pairs in offered.items()}
        narrowest = {name: pairs[-1] for name, pairs in offered.items()}
        turns: dict[str, int] = {}  # by kind of layer, so that each kind has each of its precisions
        mixed = {}
        for name, pairs in offered.items():
            kind = self._subject.anatomy.layer(name).kind
            turn = turns[kind] = turns.get(kind, -1) + 1
            others = [pair for pair in pairs if pair not in {narrowest[name], widest[name]}]
            choices = [narrowest[name], widest[name], *[FLOAT] * (name in self._with_floats), *others]
            mixed[name] = choices[turn % len(choices)]
        found: list[dict[str, Pair]] = []
        for widths in (widest, narrowest, mixed):
            if widths and widths not in found:
                found.append(widths)
        return found

    def _try(self, widths: dict[str, Pair]) -> bool:
        """Try the precisions of all layers, without those that failed before; return False if the limits stop it.

        Raises
        ------
        ExportError
            If the file of the teacher itself fails.
        ImportError
            If the runtime is not installed.
        """
        left = {name: pair for name, pair in widths.items() if pair not in (*self._failed.get(name, ()), FLOAT)}
        while left and self._reason(left) and (reason := self._reason(left)):  # twice: a process may end by chance
            if not self._failed and not self._rest and (of_floats := self._reason({})):
                raise ExportError(f"{self._runtime.name} fails with the teacher too: {of_floats}")
            blamed = self._blamed(left)
            pairs = ", ".join(sorted({f"{bits}/{inputs}" for bits, inputs in (left[name] for name in blamed)}))
            where = f"{self._runtime.name} fails with {pairs} bits of weights/inputs in {listed(blamed)}"
            if self._is_over():
                console.print(
                    f"{where}, and after {self._tries} tries it is not known in which of these layers, so they are "
                    f"offered: a member of the front may have no file; {reason}",
                    markup=False,
                )
                return False
            for name in blamed:
                like = [pair for pair in self._offered[name] if pair[1] == left[name][1]]
                refused = [pair for pair in like if pair == left[name] or pair not in self._worked[name]]
                self._failed.setdefault(name, []).extend(refused)
            console.print(f"{where}, so that these precisions are not offered there: {reason}")
            left = {name: pair for name, pair in left.items() if name not in blamed}
        for name, pair in left.items():
            self._worked[name].add(pair)
        return True

    def _blamed(self, widths: dict[str, Pair]) -> list[str]:
        """Return few layers whose precisions fail without those of all others.

        References
        ----------
        Zeller and Hildebrandt 2002, Simplifying and isolating failure-inducing input, IEEE TSE 28(2), §3.
        """
        layers, parts = list(widths), 2
        while len(layers) > 1 and not self._is_over():
            size = math.ceil(len(layers) / parts)
            chunks = [layers[start : start + size] for start in range(0, len(layers), size)]
            rests = [[name for name in layers if name not in chunk] for chunk in chunks] if parts > 2 else []  # noqa: PLR2004
            smaller = next((some for some in (*chunks, *rests) if self._reason({x: widths[x] for x in some})), None)
            if smaller is not None:
                parts = 2 if smaller in chunks else parts - 1
                layers = smaller
            elif parts >= len(layers):
                break
            else:
                parts = min(2 * parts, len(layers))
        return layers

    def _is_over(self) -> bool:
        """Whether the tries have taken what they may take."""
        return self._tries >= MOST_TRIES or time.monotonic() - self._started > self._most_seconds

    def _reason(self, widths: Widths) -> str:
        """Return why the file of the teacher at these precisions fails; an empty string if it does not."""
        self._tries += 1
        runtime, subject, example = self._runtime, self._subject, moved(self._subject.example, "cpu")
        step = Quantize(tuple((name, *pair) for name, pair in {**self._rest, **widths}.items()), self._axis.grid)
        try:
            finished = subject.finish(step.apply(subject.model, subject.example).eval()).cpu()

            def execute(inputs: Tree) -> Tree:
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / f"model.{runtime.suffix}"
                    runtime.export(finished, inputs_of_file(finished, example), path)
                    with IsolatedProcess(runtime, path) as file:
                        return file(inputs)

            found = compared(finished, at(example, slice(COMPARED)), execute)
        except ImportError:
            raise
        except Exception as error:  # noqa: BLE001 - a runtime may refuse a network in any way
            raise_machine_fault(error)
            return first_line(error)
        if found is None or found["sqnr_db"] >= (least := found["allowed_sqnr_db"] - SLACK_DB):
            return ""
        return f"its signal-to-noise ratio is {found['sqnr_db']:.1f} dB, of at least {least:.1f}"
