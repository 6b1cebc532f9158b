"""Try the precisions that a runtime declares, in the places where a search would choose them, before it starts.

What a runtime executes can depend on what stands around a layer: a concatenation, a sum, a resize. A member of the
front whose file fails would show only after the whole budget was spent on its training.
"""

from __future__ import annotations

import copy
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from objectives.layers import inputs_of_file
from objectives.runtimes import ExportError
from objectives.runtimes.isolated_process import IsolatedProcess
from objectives.trees import at, leaves, moved, run
from search.evaluation.comparison import Comparison
from search.study.console import console, track
from search.study.cpu_profile import MEASURING
from search.study.errors import raise_machine_fault
from search.study.records import DESIGNS, FAILING
from spaces import BitWidths, Quantize
from spaces.network.layers import FLOAT_BITS
from spaces.network.messages import first_line, listed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from optuna import Study

    from objectives.runtimes import Runtime
    from search.evaluation.context import Context
    from search.evaluation.subject import Subject
    from search.study.budget_clock import BudgetClock

    Pair = tuple[int, int]
    Widths = Mapping[str, Pair]

COMPARED = 8  # inputs on which a file is compared with its network (chosen)
MOST_TRIES = 40  # files, after which all layers that may be to blame are (chosen)
TIME_SHARE = 0.1  # of a time budget that the tries may take (chosen)
FLOAT = (FLOAT_BITS, FLOAT_BITS)


def try_precisions(study: Study, context: Context, clock: BudgetClock | None = None) -> None:
    """Try the precisions of each axis on the teacher, once per study; those that fail are not offered.

    Tried are: every layer at its widest precision with the narrowest inputs, at its narrowest precision, and all
    precisions in turn, so that neighbors differ. Where a file fails, halves of the layers tell which ones are to blame.
    A study whose designs were made without the tries keeps what it offers, since parameters are places in that list.
    """
    with context.workers.turn("the tries of precisions"):
        if FAILING not in study.user_attrs and DESIGNS not in study.user_attrs:
            found: dict[str, list[Pair]] = {}
            for axis in context.spec.space.steps:
                if isinstance(axis, BitWidths) and hasattr(axis.runtime, "export") and hasattr(axis.runtime, "load"):
                    with context.cpu_profile.charge(MEASURING):
                        found |= _Tries(context.subject, axis, clock).failing()
            study.set_user_attr(FAILING, found)
    leave_out_failing(study, context.subject)


def leave_out_failing(study: Study, subject: Subject) -> None:
    """Leave out of the anatomy the precisions that failed when the study began."""
    stored = study.user_attrs.get(FAILING, {})
    subject.anatomy = subject.anatomy.without({name: map(tuple, pairs) for name, pairs in stored.items()})


class _Config(NamedTuple):
    """Precisions of all layers that are tried in one file.

    Attributes
    ----------
    widths
        The pair of each layer.
    refused
        What a layer is not offered if it is to blame for the failure of its pair.
    """

    widths: Widths
    refused: Callable[[str], list[Pair]]


class _Tries:
    """The tries of one axis on the teacher."""

    def __init__(self, subject: Subject, axis: BitWidths, clock: BudgetClock | None) -> None:
        self._subject, self._axis, self._clock = subject, axis, clock
        self._runtime: Runtime = axis.runtime  # type: ignore[assignment]  # it was asked for export and load
        self._offered = axis.offered(subject.anatomy)
        self._tries = 0
        self._started = clock.left if clock is not None else math.inf

    def failing(self) -> dict[str, list[Pair]]:
        """Return for each layer the pairs that fail; say what is left out and why."""
        configs = list(self._configs())
        found: dict[str, list[Pair]] = {}
        with track(f"trying {len(configs)} sets of precisions on {self._runtime.name}") as progress:
            for done, config in enumerate(configs, 1):
                if self._tries and self._is_over():
                    console.print(f"{len(configs) - done + 1} of {len(configs)} sets are not tried: the time is short")
                    break
                try:
                    self._try(config, found)
                except (ExportError, ImportError) as error:
                    console.print(f"precisions are not tried: {first_line(error)}", markup=False)
                    break
                progress(done / len(configs))
        return found

    def _configs(self) -> Iterator[_Config]:
        """Yield what is tried: the widest integers, the narrowest ones, and all precisions in turn."""
        offered = {name: [pair for pair in pairs if pair != FLOAT] for name, pairs in self._offered.items()}
        offered = {name: pairs for name, pairs in offered.items() if pairs}
        narrowest = {name: pairs[-1] for name, pairs in offered.items()}
        widest = {
            name: next(pair for pair in pairs if pair[1] == min(inputs for _, inputs in pairs))
            for name, pairs in offered.items()
        }
        turns: dict[str, int] = {}  # by kind of layer, so that each kind has each of its precisions
        mixed = {}
        for name, pairs in offered.items():
            kind = self._subject.anatomy.layer(name).kind
            turn = turns[kind] = turns.get(kind, -1) + 1
            choices = [*pairs[::-1], FLOAT]  # the narrowest and the widest first, in small networks
            choices.insert(1, choices.pop(-2))
            mixed[name] = choices[turn % len(choices)]

        def with_such_inputs(widths: Widths) -> Callable[[str], list[Pair]]:
            return lambda name: [pair for pair in offered[name] if pair[1] == widths[name][1]]

        def narrow_ones(name: str) -> list[Pair]:
            return [pair for pair in with_such_inputs(narrowest)(name) if pair != widest[name]]

        tried = [_Config(widest, with_such_inputs(widest)), _Config(narrowest, narrow_ones)]
        tried.append(_Config(mixed, with_such_inputs(mixed)))
        seen: list[Widths] = []
        for config in tried:
            if config.widths and config.widths not in seen:
                seen.append(config.widths)
                yield config

    def _try(self, config: _Config, found: dict[str, list[Pair]]) -> None:
        """Try the precisions of all layers, without those that failed before; add those that fail.

        Raises
        ------
        ExportError
            If the file of the teacher itself fails.
        ImportError
            If the runtime is not installed.
        """
        left = {name: pair for name, pair in config.widths.items() if pair not in (*found.get(name, ()), FLOAT)}
        while left and (reason := self._reason(left)):
            if not found and (of_floats := self._reason({})):
                raise ExportError(f"{self._runtime.name} fails with the teacher too: {of_floats}")
            blamed = self._blamed(left)
            for name in blamed:
                found.setdefault(name, []).extend(pair for pair in config.refused(name) if pair not in found[name])
            pairs = ", ".join(sorted({f"{weights}/{inputs}" for weights, inputs in map(left.get, blamed)}))  # type: ignore[misc]
            console.print(
                f"{self._runtime.name} fails with {pairs} bits of weights/inputs in {listed(blamed)}, so that these "
                f"precisions are not offered there: {reason}",
                markup=False,
            )
            left = {name: pair for name, pair in left.items() if name not in blamed}

    def _blamed(self, widths: Widths) -> list[str]:
        """Return few layers whose precisions fail without those of all others.

        References
        ----------
        Zeller and Hildebrandt 2002, Simplifying and isolating failure-inducing input, IEEE TSE 28(2), §3.
        """
        layers, parts = list(widths), 2
        while len(layers) > 1 and self._tries < MOST_TRIES and not self._is_over():
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
        """Whether the tries have taken their share of a time budget."""
        return self._clock is not None and self._started - self._clock.left > TIME_SHARE * self._clock.total

    def _reason(self, widths: Widths) -> str:
        """Return why the file of the teacher at these precisions fails; an empty string if it does not."""
        self._tries += 1
        subject, example = self._subject, moved(self._subject.example, "cpu")
        step = Quantize(tuple((name, *pair) for name, pair in widths.items()), self._axis.grid)
        try:
            quantized = step.apply(subject.model, subject.example).eval()
            finished = copy.deepcopy(subject.finish(quantized)).cpu()
            inputs = at(example, slice(COMPARED))
            with torch.no_grad():
                expected = run(finished, inputs)
            if not all(bool(tensor.isfinite().all()) for tensor in leaves(expected)):
                return ""
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"model.{self._runtime.suffix}"
                self._runtime.export(finished, inputs_of_file(finished, example), path)
                with IsolatedProcess(self._runtime, path) as file:
                    answers = file(inputs_of_file(finished, inputs))
            comparison = Comparison(finished)
            comparison.add(inputs, expected, answers, None)
        except ImportError:
            raise
        except Exception as error:  # noqa: BLE001 - a runtime may refuse a network in any way
            raise_machine_fault(error)
            return first_line(error)
        found = comparison.record()
        if found["sqnr_db"] >= found["allowed_sqnr_db"]:
            return ""
        return f"its signal-to-noise ratio is {found['sqnr_db']:.1f} dB, of at least {found['allowed_sqnr_db']:.1f}"
