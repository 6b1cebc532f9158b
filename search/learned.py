"""Costs that shapes do not tell, such as latency, learned from networks that were measured on this machine.

Legend: `N` networks, `F` kinds of work, `P` and `L` as in `Parts`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import nnls

from search import machine
from search.definition import define_value
from search.progress import console, track
from search.shares import MEASURING
from search.storage import save_json
from search.trial import RELATIVE
from spaces.anatomy import first_line
from spaces.outline import outlined
from spaces.quantized import OFF

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from optuna import Study

    from objectives import Objective
    from objectives.layers import Parts
    from search.bench import Bench
    from spaces import Plan

NETWORKS, FEWEST = 20, 8  # networks that are measured; with fewer nothing is told
ROUNDS, A_ROUND = 2, 6  # of plans that are measured before a draft
MIXED = 4  # uniform plans of which a measured one takes each parameter from one
ALIKE = 0.05  # of the cost, by which networks differ that are alike
FAR = 0.3  # networks of which nothing is left, that count everywhere
BYTE = 8
BLOCKS = 8, 16  # output channels that kernels compute together: those of ONNX Runtime, and of XNNPACK
GATHERED = 8  # input channels that XNNPACK's integer kernels multiply together, at each place of the kernel
FOLDER = "SLIMFRONT_MEASURED"
AHEAD = "measured_ahead"  # attribute of a study: parameters of plans, what they cost over the teacher, and on what


@dataclass(frozen=True)
class Learned:
    """A cost as the sum of the work in a network, each kind of it at its price, put right by what its like measured.

    What prices leave is alike for networks that are alike, and a search looks at many of these. So what is told of a
    network is moved by the mean of what was left of measured ones, the nearer the more (Nadaraya 1964, Theory of
    Probability and Its Applications 9(1)); far from all of them it is not moved.

    Parameters
    ----------
    name
        Of the objective.
    done_NF, values_N
        The work in the networks that it is learned from, and what they cost; the first is the teacher.
    """

    name: str
    done_NF: np.ndarray
    values_N: np.ndarray

    @property
    def teacher(self) -> float:
        """What the teacher costs in this process, which is not always what it does in another."""
        return float(self.values_N[0])

    @cached_property
    def prices_F(self) -> np.ndarray:  # noqa: N802 - the legend's
        """What one unit of each kind of work costs, in the objective's unit."""
        return _prices(self.done_NF, self.values_N)

    @cached_property
    def error(self) -> float:
        """Median relative error on the networks that it is learned from, each told from the others."""
        left_out = enumerate(~np.eye(len(self.values_N), dtype=bool))
        told_N = [
            float(Learned(self.name, self.done_NF[others], self.values_N[others]).told(self.done_NF[at, None])[0])
            for at, others in left_out
        ]
        return float(np.median(np.abs(told_N / self.values_N - 1)))

    def foreseen(self, parts: Parts) -> np.ndarray:
        """Return the cost of each network, shape (N,)."""
        return self.told(work(parts))

    def told(self, done_MF: np.ndarray) -> np.ndarray:
        """Return the cost of networks with so much work in them, shape (M,)."""
        priced_M, places_MF = self._priced(done_MF)
        known_N, known_NF = self._priced(self.done_NF)
        squares_MN = (places_MF**2).sum(1)[:, None] + (known_NF**2).sum(1) - 2 * places_MF @ known_NF.T
        near_MN = np.exp(-squares_MN / (2 * ALIKE**2))
        moved_M = near_MN @ np.log(self.values_N / known_N) / (near_MN.sum(1) + FAR)
        told: np.ndarray = priced_M * np.exp(moved_M)
        return told

    def _priced(self, done_MF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what networks cost at the prices, and their places: the shares of each kind of work, and how much."""
        each_MF = done_MF * self.prices_F
        total_M = np.maximum(each_MF.sum(1), 1e-12)
        return total_M, np.column_stack([each_MF / total_M[:, None], np.log(total_M)])

    def and_of(self, parts: Parts, value: float) -> Learned:
        """Return the cost as learned from one network more, and what that was measured to cost."""
        return Learned(self.name, np.vstack([self.done_NF, work(parts)]), np.append(self.values_N, value))


def work(parts: Parts) -> np.ndarray:
    """Return how much work of each kind there is in each network, shape (N, F).

    Multiply-adds of convolutions in floating point, of those between integers, of grouped ones and of linear layers,
    all with output channels filled up to eight and to sixteen; of those between integers with input channels filled up,
    of which a first layer has few; multiply-adds as they are, of grouped ones between integers, and of convolutions
    whose weights of less than a byte are unpacked at every inference; bits of weights; numbers written, and those of
    layers with rounded inputs; layers, those with rounded inputs and those that are unpacked; multiply-adds of other
    products; and 1.
    """
    whole = np.broadcast_arrays(
        parts.macs, parts.weights, parts.outputs, parts.inputs, parts.weight_bits, parts.activation_bits, parts.linear,
        parts.grouped,
    )  # fmt: skip
    macs, weights, outputs, inputs, weight_bits, activation_bits, linear, grouped = whole
    there = outputs > 0
    blocks = [_filled(macs, outputs, block) for block in BLOCKS]
    gathered = _filled(macs, inputs, GATHERED)
    written = outputs * macs / np.maximum(weights, 1)
    rounded = there & (activation_bits < OFF)
    integer = rounded & (weight_bits < OFF)
    alone = grouped > 0
    dense = there & ~(linear > 0) & ~alone
    unpacked = [there & (weight_bits < BYTE) & kind for kind in (integer, ~integer)]
    each = (
        *(filled * kind for filled in blocks for kind in (dense & ~integer, dense & integer, alone, linear > 0)),
        gathered * (dense & integer), macs, macs * (alone & integer),
        *(macs * (kind & these) for kind in unpacked for these in (dense, alone)),
        weights * weight_bits, written, written * rounded, there, rounded, *unpacked,
    )  # fmt: skip
    sums = [kind.sum((0, 2)) for kind in each]
    return np.column_stack([*sums, parts.product_macs, np.ones(len(sums[0]))])


def _filled(macs: np.ndarray, channels: np.ndarray, block: int) -> np.ndarray:
    """Return the multiply-adds where channels are filled up to whole blocks."""
    filled: np.ndarray = macs * np.ceil(channels / block) * block / np.maximum(channels, 1)
    return filled


def _prices(done_NF: np.ndarray, values_N: np.ndarray) -> np.ndarray:
    """Return the prices, none negative, of least squared relative error on measured networks.

    References
    ----------
    Lawson & Hanson 1974, Solving Least Squares Problems, ch. 23.
    """
    scale_F = np.maximum(np.abs(done_NF).max(0), 1e-12)
    steps = 100 * len(scale_F)  # the default of three a price would do; beyond it the fit fails
    prices_F, _ = nnls(done_NF / scale_F / values_N[:, None], np.ones(len(values_N)), maxiter=steps)
    scaled: np.ndarray = prices_F / scale_F
    return scaled


def learn(bench: Bench, seconds: float) -> None:
    """Learn every cost of the study that is to be small and cannot be foreseen, so that a draft can search it.

    Networks of random strengths, each axis alone and together, are built and measured, not trained. What was measured
    is kept, for this machine, in the folder that the environment variable SLIMFRONT_MEASURED names, by default
    `runs/measured`. Where that would take too long or fails, the cost stays unknown, which is said.

    Parameters
    ----------
    bench
        The study.
    seconds
        CPU time that measuring may take; with 0 only what is kept is learned from.
    """
    for objective in bench.spec.costs:
        if objective.name not in bench.foresight.foreseeable and objective.direction == "minimize":
            try:
                ratios = _measured(bench, objective, seconds)
                if len(ratios) < FEWEST:
                    if seconds:
                        console.print(
                            f"{objective.name} is not learned: measuring {FEWEST} networks would take too long"
                        )
                    continue
                with bench.shares.spending(MEASURING):
                    teacher = objective(bench.finished)
            except Exception as error:  # noqa: BLE001 - an objective may be anyone's; its trials will say so too
                console.print(f"{objective.name} is not learned, since measuring a network failed: {first_line(error)}")
                continue
            plans = itertools.islice(_plans(bench), len(ratios))
            parts = outlined(bench.foresight.frame, [None, *(bench.plan(params) for params in plans)]).parts()
            bench.foresight.learn(Learned(objective.name, work(parts), teacher * np.array([1.0, *ratios])))


def look_ahead(study: Study, bench: Bench, best: Callable[[int], list[dict[str, float]]], seconds: float) -> None:
    """Measure some of the plans that a search is about to look at, and learn from them, where a cost is learned.

    They are unlike random networks, from which they are told badly. What was measured lies in the study, for other
    workers of such a machine and for when it goes on.

    Parameters
    ----------
    study, bench
        The study.
    best
        Returns the parameters of about so many plans, the best by what is known by then.
    seconds
        CPU time that measuring may take.
    """
    learned = [objective for objective in bench.spec.costs if objective.name in bench.foresight.learned]
    if learned and not any(on == machine.words() for *_, on in study.user_attrs.get(AHEAD, ())):
        found: dict[Plan, tuple[dict[str, float], dict[str, float], str]] = {}
        started = time.process_time()
        with track("measuring plans that promise much") as told:
            rounds = (best(number * A_ROUND) for number in range(1, ROUNDS + 1))  # each by what the last one taught
            for params in itertools.chain.from_iterable(rounds):
                plan = bench.plan(params)
                if found and time.process_time() - started > seconds:
                    break
                if plan in found:
                    continue
                try:
                    with bench.shares.spending(MEASURING):
                        values = bench.costs(plan, bench.sketch(plan), learned)
                except Exception as error:  # noqa: BLE001 - whatever it is, a trial will say so
                    console.print(f"a plan could not be measured: {first_line(error)}")
                    values = {}
                relative = bench.foresight.relative(values)
                found[plan] = params, relative, machine.words()
                bench.foresight.remember(plan, relative)
                told(min(1.0, len(found) / (ROUNDS * A_ROUND)))
        study.set_user_attr(AHEAD, [*study.user_attrs.get(AHEAD, ()), *found.values()])
    recall(study, bench)


def recall(study: Study, bench: Bench) -> None:
    """Learn from what trials measured, and what was measured before them: in this process, before it, beside it.

    On other machines costs are others, and what was measured there is left out.
    """
    foresight = bench.foresight
    if not foresight.learned:
        return
    for params, relative, on in study.user_attrs.get(AHEAD, ()):
        if on == machine.words():
            foresight.remember(bench.plan(params), relative)
    for trial in study.get_trials(deepcopy=False):
        if RELATIVE in trial.user_attrs and trial.number not in foresight.recalled:
            foresight.recalled.add(trial.number)
            relative, on = trial.user_attrs[RELATIVE]
            if on == machine.words():
                foresight.remember(bench.plan(trial.params), relative)


def _measured(bench: Bench, objective: Objective, seconds: float) -> list[float]:
    """Return what the first networks cost, over what the teacher does; those that are not known yet are measured."""
    path = _path(bench, objective)
    ratios: list[float] = json.loads(path.read_text()) if path.exists() else []
    known = len(ratios)
    if known >= NETWORKS or not seconds:
        return ratios
    with track(f"measuring networks to learn {objective.name}") as told, bench.shares.spending(MEASURING):
        until = time.process_time() + seconds
        teacher = objective(bench.finished)  # with all that a runtime loads once
        started = time.process_time()
        for params in itertools.islice(_plans(bench), known, NETWORKS):
            ratio = objective(bench.finish(bench.sketch(bench.plan(params)))) / teacher
            if not 0 < ratio < math.inf:
                raise ValueError(f"a cost must be positive to be learned, but got {ratio * teacher} on a network")
            ratios.append(ratio)
            told(len(ratios) / NETWORKS)
            now = time.process_time()
            more = max(FEWEST - len(ratios), 1)
            if now + more * (now - started) / (len(ratios) - known) > until:
                break
    save_json(path, ratios)
    return ratios


def _plans(bench: Bench) -> Iterator[dict[str, float]]:
    """Yield the parameters of the plans to measure, always the same."""
    space, anatomy = bench.spec.space, bench.anatomy
    dice = np.random.default_rng(0)
    axes = len(space.steps)
    for mask in itertools.cycle(mask for mask in itertools.product((1, 0), repeat=axes) if any(mask)):
        mixed = [space.uniform(anatomy, tuple(dice.random(axes) * mask)) for _ in range(MIXED)]
        yield {name: mixed[dice.integers(MIXED)][name] for name in mixed[0]}


def _path(bench: Bench, objective: Objective) -> Path:
    key = repr((machine.identity(), objective, bench.anatomy, sorted(define_value(bench.spec.space).items())))
    return Path(os.environ.get(FOLDER, "runs/measured")) / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
