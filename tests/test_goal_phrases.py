"""What can be said as a goal, and what is not understood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pytest

from objectives import Loss, SizeBytes, Top1, TopK
from search.study.errors import UserError
from search.study.goal_phrases import EXAMPLES, wishes
from tests.small_study import splits

if TYPE_CHECKING:
    from torch import nn

    from objectives.objective import Direction


@dataclass(frozen=True)
class Energy:
    name: ClassVar[str] = "energy_mj"
    direction: ClassVar[Direction] = "minimize"
    is_cost: ClassVar[bool] = True

    def __call__(self, model: nn.Module) -> float:
        return 1.0


EXAMPLE_DATA = splits().validation
OBJECTIVES = (Top1(EXAMPLE_DATA), SizeBytes(), TopK(EXAMPLE_DATA, 5), Loss(EXAMPLE_DATA), Energy())

SAID: dict[str, tuple[str, str, float]] = {
    # the size of the file
    "4x smaller": ("size", "of_teacher", 1 / 4),
    "at least 4× smaller": ("size", "of_teacher", 1 / 4),
    "a 4-fold smaller file": ("size", "of_teacher", 1 / 4),
    "three times smaller": ("size", "of_teacher", 1 / 3),
    "30% smaller": ("size", "of_teacher", 0.7),
    "half the size": ("size", "of_teacher", 1 / 2),
    "at most a quarter of the teacher's size": ("size", "of_teacher", 1 / 4),
    "25% of the size": ("size", "of_teacher", 1 / 4),
    "half as big": ("size", "of_teacher", 1 / 2),
    "cut the size by 75%": ("size", "of_teacher", 1 / 4),
    "at most 20 kB": ("size", "at_most", 20_000),
    "20 KB or less": ("size", "at_most", 20_000),
    "at most 20 kilobytes": ("size", "at_most", 20_000),
    "at most one megabyte": ("size", "at_most", 1e6),
    "at most 20 kibibytes": ("size", "at_most", 20_480),
    "seven times smaller": ("size", "of_teacher", 1 / 7),
    "nine times smaller": ("size", "of_teacher", 1 / 9),
    "under 1 millisecond": ("latency", "at_most", 1),
    "a file of at most 20,000 bytes": ("size", "at_most", 20_000),
    "fits in 32 KiB": ("size", "at_most", 32_768),
    "fits 256 kB RAM": ("arena", "at_most", 256_000),
    "at most 64 KiB of SRAM": ("arena", "at_most", 65_536),
    "at most 64 kB RAM memory": ("arena", "at_most", 64_000),
    # time
    "2x faster": ("latency", "of_teacher", 1 / 2),
    "twice as fast": ("latency", "of_teacher", 1 / 2),
    "2x speedup": ("latency", "of_teacher", 1 / 2),
    "100% faster": ("latency", "of_teacher", 1 / 2),
    "a third of the latency": ("latency", "of_teacher", 1 / 3),
    "30% less latency": ("latency", "of_teacher", 0.7),
    "under 5 ms": ("latency", "at_most", 5),
    "latency below 500 µs": ("latency", "at_most", 0.5),
    "at least 30 fps": ("frames", "at_most", 1000 / 30),
    # counts
    "5x fewer multiply-adds": ("macs", "of_teacher", 1 / 5),
    "at most 5 million MACs": ("macs", "at_most", 5e6),
    "5 MMACs": ("macs", "at_most", 5e6),
    "4x fewer FLOPs": ("flops", "of_teacher", 1 / 4),
    "2x fewer parameters": ("parameters", "of_teacher", 1 / 2),
    "half the number of parameters": ("parameters", "of_teacher", 1 / 2),
    "100k params": ("parameters", "at_most", 1e5),
    # what may be lost
    "lose at most 1 point": ("metric", "lose_at_most", 1),
    "lose less than 0.5 points of accuracy": ("metric", "lose_at_most", 0.5),
    "at most 1 point lost": ("metric", "lose_at_most", 1),
    "at most one percentage point below the teacher": ("metric", "lose_at_most", 1),
    "1% accuracy drop": ("metric", "lose_at_most", 1),
    "an accuracy drop under 1 %": ("metric", "lose_at_most", 1),
    "1 point less accuracy": ("metric", "lose_at_most", 1),
    "lose nothing": ("metric", "lose_at_most", 0),
    "without losing accuracy": ("metric", "lose_at_most", 0),
    "the same accuracy": ("metric", "lose_at_most", 0),
    "lose at most 0.1 loss_nats": ("loss_nats", "lose_at_most", 0.1),
    "at least 92% accuracy": ("metric", "at_least", 92),
    "accuracy of at least 92%": ("metric", "at_least", 92),
    "keep over 92 percent accuracy": ("metric", "at_least", 92),
    "at least 92%": ("metric", "at_least", 92),
    # a share of what the teacher's metric is, or a distance from it
    "keep 99% of the accuracy": ("metric", "of_teacher", 0.99),
    "at least 95% of the teacher's accuracy": ("metric", "at_least", 0.95),
    "at least 95% of the original": ("metric", "at_least", 0.95),
    "at least 0.95 of the accuracy": ("metric", "at_least", 0.95),
    "at least half the accuracy": ("metric", "at_least", 0.5),
    "lose at most 2% of the accuracy": ("metric", "lose_at_most", 0.02),
    "at most 110% of the teacher's loss_nats": ("loss_nats", "at_most", 1.1),
    "keep accuracy within 1%": ("metric", "lose_at_most", 1),
    "within 1% of the teacher's accuracy": ("metric", "lose_at_most", 1),
    "accuracy loss within 1 percent": ("metric", "lose_at_most", 1),
    "within 2 points of the teacher": ("metric", "lose_at_most", 2),
    "at most 110% of the size": ("size", "of_teacher", 1.1),
    "fits within 20 kB": ("size", "at_most", 20_000),
    "top-1 accuracy of at least 92%": ("top1", "at_least", 92),
    # names of the study's objectives
    "top1>=92": ("top1", "at_least", 92),
    "top-5 at least 99": ("top5", "at_least", 99),
    "size_bytes <= 2e4": ("size_bytes", "at_most", 20_000),
    "half the energy": ("energy_mj", "of_teacher", 1 / 2),
    "energy_mj<=3": ("energy_mj", "at_most", 3),
}
NOT_UNDERSTOOD = [
    "banana", "4x", "smaller", "20", "at most 5", "2x as big", "120% smaller", "0x smaller", "4x smaller 2x faster",
    "at most 10 flops", "latency under 20 kB", "size at most 20", "lose at least 1 point", "at most 1%", "1 point",
    "2x", "accuracy", "lose 4x", "0 kB", "loss<=0.5", "at most 0.5 loss", "drop < 2", "accuracy within 2",
]  # fmt: skip


@pytest.mark.parametrize("phrase", SAID)
def test_a_phrase_is_understood(phrase: str) -> None:
    (wish,) = wishes(phrase, OBJECTIVES)
    quantity, relation, number = SAID[phrase]
    assert (wish.phrase, wish.quantity, wish.relation) == (phrase, quantity, relation)
    assert wish.number == pytest.approx(number)


@pytest.mark.parametrize("phrase", NOT_UNDERSTOOD)
def test_other_phrases_are_an_error_that_lists_what_can_be_said(phrase: str) -> None:
    with pytest.raises(UserError) as caught:
        wishes(f"4x smaller, {phrase}", OBJECTIVES)
    message = str(caught.value)
    assert message.startswith(f"{phrase!r} cannot be read as a goal; ")
    assert all(f"'{example}'" in message for example in EXAMPLES)
    assert message.endswith("with a name among top1, size_bytes, top5, loss_nats, energy_mj")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("phrase", "words"),
    [
        ("0.5x smaller", "a factor must be 1 or more, but '0.5x smaller' allows more than the teacher has; did you "),
        ("0.25x fewer parameters", "did you mean 4x?"),
        ("the teacher's accuracy at least 95%", "can mean a share of the teacher's or a value of its own; say '95% of"),
    ],
)
def test_what_probably_means_something_else_is_refused(phrase: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        wishes(phrase, OBJECTIVES)
    assert words in str(caught.value)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_can_be_said(example: str) -> None:
    assert wishes(example, OBJECTIVES)


@pytest.mark.parametrize(
    ("goal", "phrases"),
    [
        ("4x smaller, 2x faster, lose at most 1 point", ["4x smaller", "2x faster", "lose at most 1 point"]),
        ("4x smaller,2x faster", ["4x smaller", "2x faster"]),
        ("4x smaller and 2x faster; 1 point lost", ["4x smaller", "2x faster", "1 point lost"]),
        ("at most 20,000 bytes,100,000 parameters", ["at most 20,000 bytes", "100,000 parameters"]),
        ("half the size but lose nothing", ["half the size", "lose nothing"]),
    ],
)
def test_phrases_are_separated_by_commas_and_words(goal: str, phrases: list[str]) -> None:
    assert [wish.phrase for wish in wishes(goal, OBJECTIVES)] == phrases


@pytest.mark.parametrize(
    "goal", ["lose at most 0,500 points", "at most 1,5 points", "1,500% faster", "20,0000 bytes", "4x smaller, 0,5 ms"]
)
def test_a_decimal_comma_is_refused(goal: str) -> None:
    with pytest.raises(UserError, match=r"a comma between digits separates thousands, as in 20,000, but the goal has "):
        wishes(goal, OBJECTIVES)


@pytest.mark.parametrize("goal", [" ", ",", " , and "])
def test_a_goal_says_something(goal: str) -> None:
    with pytest.raises(UserError, match="a goal must not be empty; a goal consists of phrases such as '4x smaller'"):
        wishes(goal, OBJECTIVES)
