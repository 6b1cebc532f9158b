"""Phrases of a goal, such as "4x smaller" or "lose at most 1 point": what each one says, as data."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Literal, NamedTuple

from search.study.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from objectives import Objective

    Relation = Literal["of_teacher", "lose_at_most", "at_most", "at_least"]

EXAMPLES = (
    "4x smaller", "half the size", "at most 20 kB", "at most 64 kB RAM", "2x faster", "under 5 ms", "at least 30 fps",
    "5x fewer multiply-adds", "2x fewer parameters",
    "lose at most 1 point", "1% accuracy drop", "at least 92% accuracy", "keep 95% of the accuracy",
)  # fmt: skip

NUMBER_WORDS = {
    "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
    "eleven": 11, "twelve": 12, "twenty": 20, "fifty": 50, "hundred": 100,
}  # fmt: skip
NUMBER = rf"((?:\d{{1,3}}(?:,\d{{3}})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?|\.\d+|{'|'.join(NUMBER_WORDS)})"
SHARES = {"half": 1 / 2, "third": 1 / 3, "quarter": 1 / 4, "fifth": 1 / 5, "tenth": 1 / 10}
THOUSANDS = {"k": 1e3, "m": 1e6, "g": 1e9, "thousand": 1e3, "million": 1e6, "billion": 1e9}
BYTES = {
    "b": 1.0, "byte": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30,
    "kilobyte": 1e3, "megabyte": 1e6, "gigabyte": 1e9, "kibibyte": 2**10, "mebibyte": 2**20, "gibibyte": 2**30,
}  # fmt: skip
MILLISECONDS = {"us": 1e-3, "microsecond": 1e-3, "ms": 1.0, "millisecond": 1.0, "s": 1e3, "second": 1e3}
SPELLINGS = str.maketrans({"×": "x", "µ": "u", "μ": "u", "≤": "<=", "≥": ">=", "’": "'"})
WITH_COMMA = re.compile(r"(\d[\d.,]*,\d+)( ?(?:%|percent|point|pp))?", re.IGNORECASE)
THOUSANDS_APART = re.compile(r"[1-9]\d{0,2}(?:,\d{3})+")
# What stands between phrases; the comma in 20,000 does not.
SEPARATOR = re.compile(r"\s*(?:(?<!\d),|,(?!\d)|;|\n|\band\b|\bbut\b)\s*", re.IGNORECASE)

# "loss<=0.5" is about an objective that the study may lack, and no loss of accuracy, as in "accuracy loss".
LOSS_AS_NAME = re.compile(r"\bloss\b|[<>≤≥]", re.IGNORECASE)

NUMBERS = {
    "distance": rf"within {NUMBER} ?(?:%|percent(?!\w))",
    "share": rf"(\d+/\d+|{'|'.join(SHARES)})(?!\w)|{NUMBER} ?(?:%|percent)(?= of(?!\w))|(\d?\.\d+)(?= of(?!\w))",
    "points": rf"{NUMBER} ?(?:percentage points?|%-points?|points?|pp)(?!\w)",
    "percent": rf"{NUMBER} ?(?:%|percent(?!\w))",
    "factor": rf"(?:{NUMBER}[ -]?(?:x|times|fold)|twice|double)(?!\w)",
    "bytes": rf"{NUMBER} ?({'|'.join(BYTES)})s?(?!\w)",
    "milliseconds": rf"{NUMBER} ?({'|'.join(MILLISECONDS)})s?(?!\w)",
    "count": rf"{NUMBER}(?: ?(thousand|million|billion|[kmg](?=\W|$|macs|bops|params)))?",
}
# Kinds of words; those of a quantity are listed below.
WORDS = {
    "at_most": r"<=|<|(?:at most|(?:no|not) (?:more|larger|bigger|slower|longer|higher) than|up to|max(?:imum)?|"
    r"fits?(?: in(?:to)?)?|or (?:less|fewer|smaller|faster))(?!\w)|"
    r"(?:under|below|(?:less|fewer|smaller|faster) than)(?= *[\d.])",
    "at_least": r">=|>|(?:at least|(?:no|not) (?:less|lower|worse) than|min(?:imum)?|or (?:more|better|higher))(?!\w)|"
    r"(?:over|above|more than)(?= *[\d.])",
    "within": r"within(?!\w)",
    "smaller": r"(?:smaller|small|lighter|compression|compressed)(?!\w)",
    "faster": r"(?:faster|fast|quicker|speed[- ]?up|speed)(?!\w)",
    "large": r"(?:big|large|heavy)(?!\w)",
    "fewer": r"(?:fewer|less|lower|reduced?|reduction|cut)(?!\w)",
    "lose": r"(?:los(?:e|es|ing|t|s)|drop(?:s|ped)?|worse|below|degradation|decrease)(?!\w)",
    "nothing": r"(?:nothing|no|zero|without|any)(?!\w)",
    "same": r"(?:same|unchanged)(?!\w)",
    "teacher": r"(?:teacher's|teacher|original)(?!\w)",
    "": r"(?:the|its|a|an|be|is|must|should|make|with|i|want|it|get|of|in|as|by|many|much|network|model|student|only|"
    r"than|has|have|keep|number)(?!\w)|[.:!]",
}
QUANTITIES = {
    "size": r"(?:(?:file|model) sizes?|sizes?|files?|memory|storage|disk|flash)(?!\w)",
    "arena": r"(?:s?ram(?: memory)?|arena)(?!\w)",
    "latency": r"(?:latency|inference time|run ?time|time)(?!\w)",
    "frames": r"(?:fps|frames (?:per|a) second)(?!\w)",
    "bops": r"(?:bops|bit[- ]operations)(?!\w)",
    "macs": r"(?:mult(?:iply|i)?[- ]?add(?:s|itions)?|macs?)(?!\w)",
    "flops": r"(?:flops|operations)(?!\w)",
    "parameters": r"(?:parameters?|params?|weights)(?!\w)",
    "top1": r"top[- ]?1(?!\w)",
    "metric": r"(?:accuracy|quality|score)(?!\w)",
}
IMPLIED = {"smaller": "size", "large": "size", "bytes": "size", "faster": "latency", "milliseconds": "latency"}
IN_BYTES = "size", "arena"
NEED_A_UNIT = ("size", "arena", "latency", "flops")  # some count a multiply-add as one FLOP and some as two


class Wish(NamedTuple):
    """What a phrase says.

    Attributes
    ----------
    phrase
        The phrase as it was given.
    quantity
        A key of `QUANTITIES`, or the name of an objective of the study.
    relation, number
        The bound: a parameter of `Limit`, and its value.
    unit
        How the number was given: a key of `NUMBERS`, empty without a number. A share is always one of the
        teacher's value.
    """

    phrase: str
    quantity: str
    relation: Relation
    number: float
    unit: str = ""


class Rule(NamedTuple):
    """One form of a phrase, whatever the order of its words: kinds of numbers and words, and what the phrase says.

    `cost`, `frames` and `metric` are the kinds of quantities.
    """

    numbers: str
    needed: str
    allowed: str
    relation: Relation
    value: Callable[[float], float] = float


RULES = (
    Rule("points percent count share", "lose", "metric at_most within", "lose_at_most"),
    Rule("points percent count", "fewer metric", "at_most within", "lose_at_most"),
    Rule("points", "at_most", "metric", "lose_at_most"),
    Rule("points", "within", "metric", "lose_at_most"),
    Rule("distance", "", "metric cost lose", "lose_at_most"),
    Rule("", "nothing lose", "metric", "lose_at_most"),
    Rule("", "same metric", "", "lose_at_most"),
    Rule("factor", "smaller", "cost at_least", "of_teacher", lambda times: 1 / times),
    Rule("factor", "faster", "cost at_least", "of_teacher", lambda times: 1 / times),
    Rule("factor", "fewer cost", "at_least", "of_teacher", lambda times: 1 / times),
    Rule("percent", "smaller", "cost at_least", "of_teacher", lambda percent: 1 - percent / 100),
    Rule("percent", "fewer cost", "at_least", "of_teacher", lambda percent: 1 - percent / 100),
    Rule("percent", "faster", "cost at_least", "of_teacher", lambda percent: 1 / (1 + percent / 100)),
    Rule("percent", "large", "cost at_most", "of_teacher", lambda percent: percent / 100),
    Rule("percent", "cost", "at_most", "of_teacher", lambda percent: percent / 100),
    Rule("share", "fewer cost", "at_least", "of_teacher", lambda share: 1 - share),
    Rule("share", "large", "cost at_most", "of_teacher"),
    Rule("share", "cost", "at_most", "of_teacher"),
    Rule("bytes milliseconds count", "cost", "at_most within", "at_most"),
    Rule("bytes milliseconds", "", "at_most within", "at_most"),
    Rule("count", "cost at_least", "", "at_least"),
    Rule("count", "frames", "at_least", "at_most", lambda rate: 1000 / rate),  # milliseconds a frame
    Rule("share", "metric", "", "of_teacher"),
    Rule("percent count share", "metric at_most", "", "at_most"),
    Rule("share", "at_least", "metric", "at_least"),
    Rule("percent count", "metric", "at_least", "at_least"),
    Rule("percent", "at_least", "", "at_least"),
)


class _Token(NamedTuple):
    kind: str
    quantity: str = ""
    number: float = 0.0


def wishes(goal: str, objectives: Sequence[Objective]) -> list[Wish]:
    """Return what each phrase of a goal says.

    Parameters
    ----------
    goal
        Phrases separated by commas, semicolons, `and` or `but`.
    objectives
        The objectives of the study, which phrases may name.

    Raises
    ------
    UserError
        If a phrase cannot be read; the message lists what can be said.
    """
    for number, unit in WITH_COMMA.findall(goal):
        if unit or not THOUSANDS_APART.fullmatch(number):  # thousands of points are no goal, so that is a decimal comma
            raise UserError(
                f"a comma between digits separates thousands, as in 20,000, but the goal has {(number + unit)!r}; "
                "write a decimal with a point, as 0.5, and a space between two phrases"
            )
    found = []
    for phrase in filter(None, SEPARATOR.split(goal.strip())):
        wish = _wish(phrase, objectives)
        if wish is None:
            raise UserError(f"{phrase!r} cannot be read as a goal; {sayable(objectives)}")
        found.append(wish)
    if not found:
        raise UserError(f"a goal must not be empty; {sayable(objectives)}")
    return found


def sayable(objectives: Sequence[Objective]) -> str:
    """Return what a goal can say, with examples."""
    examples = ", ".join(f"'{example}'" for example in EXAMPLES)
    names = ", ".join(objective.name for objective in objectives)
    return f"a goal consists of phrases such as {examples}, or NAME<=VALUE and NAME>=VALUE with a name among {names}"


def _wish(phrase: str, objectives: Sequence[Objective]) -> Wish | None:
    """Return what a phrase says, None if it cannot be read."""
    tokens = [token for token in _tokens(phrase, objectives) if token is None or token.kind]
    numbers = [token for token in tokens if token is not None and token.kind in NUMBERS]
    words = {token.kind for token in tokens if token is not None} - {number.kind for number in numbers}
    of_teacher = "teacher" in words
    words.discard("teacher")
    quantities = {token.quantity for token in tokens if token is not None and token.quantity}
    if len(quantities) > 1 and "cost" not in words:
        quantities.discard("metric")  # as in "top-1 accuracy"
    if None in tokens or len(numbers) > 1 or len(quantities) > 1:
        return None
    number = numbers[0] if numbers else _Token("")
    if number.kind == "count" and "lose" in words and not quantities and LOSS_AS_NAME.search(phrase):
        return None
    implied = [IMPLIED[kind] for kind in (*words, number.kind) if kind in IMPLIED]
    quantity = next(iter([*quantities, *implied]), "metric")
    for rule in RULES:
        needed = set(rule.needed.split())
        if number.kind in rule.numbers.split(" ") and needed <= words <= needed | set(rule.allowed.split()):
            known = number.kind != "count" or quantity not in NEED_A_UNIT
            fitting = number.kind not in IMPLIED or quantity not in QUANTITIES or quantity in _measured_in(number.kind)
            positive = not numbers or number.number > 0 or rule.relation == "lose_at_most"
            value = rule.value(number.number) if positive else 0.0
            said = Wish(phrase, quantity, rule.relation, value, number.kind)
            _refuse_misleading(said, number.number, is_metric="metric" in {*words, quantity}, of_teacher=of_teacher)
            return said if known and fitting and (value > 0 or rule.relation == "lose_at_most") else None
    return None


def _refuse_misleading(wish: Wish, number: float, *, is_metric: bool, of_teacher: bool) -> None:
    """Refuse a phrase that probably means something else than what it says.

    Raises
    ------
    UserError
        If a factor is below 1, or it is open whether a number is the metric or a share of the teacher's.
    """
    if wish.unit == "factor" and 0 < number < 1:
        raise UserError(
            f"a factor must be 1 or more, but {wish.phrase!r} allows more than the teacher has; did you mean "
            f"{1 / number:.3g}x?"
        )
    if is_metric and of_teacher and wish.unit in {"percent", "count"} and wish.relation in {"at_least", "at_most"}:
        raise UserError(
            f"{wish.phrase!r} can mean a share of the teacher's or a value of its own; say '{number:g}% of the "
            "teacher's accuracy', or leave the teacher out"
        )


def _measured_in(unit: str) -> tuple[str, ...]:
    """Return the quantities that are given in a unit."""
    return IN_BYTES if unit == "bytes" else (IMPLIED[unit],)


def _tokens(phrase: str, objectives: Sequence[Objective]) -> Iterator[_Token | None]:
    """Yield the words and numbers of a phrase; None for a word that is not known."""
    rest = " ".join(phrase.lower().translate(SPELLINGS).split())
    names = sorted(_names(objectives), key=lambda item: -len(item[0]))
    while rest:
        for pattern, objective in names:
            if match := re.match(rf"{pattern}(?!\w)", rest):
                yield _Token("cost" if objective.is_cost else "metric", objective.name)
                break
        else:
            for kind, pattern in {**NUMBERS, **WORDS, **QUANTITIES}.items():
                if match := re.match(pattern, rest):
                    yield _token(kind, match)
                    break
            else:
                yield None
                return
        rest = rest[match.end() :].lstrip()


def _names(objectives: Sequence[Objective]) -> Iterator[tuple[str, Objective]]:
    """Yield the patterns of the names of objectives: with and without the unit, `top5` also as `top-5`."""
    for objective in objectives:
        name = objective.name.lower()
        yield re.sub(r"^top(\d)", r"top[- ]?\1", re.escape(name)), objective
        without_unit = " ".join(name.split("_")[:-1])
        other_words = [*WORDS.values(), *QUANTITIES.values()]
        if without_unit and not any(re.match(pattern, without_unit) for pattern in other_words):
            yield re.escape(without_unit), objective


def _token(kind: str, match: re.Match[str]) -> _Token:
    """Return the token of a match: a number in its unit, a word, or a quantity."""
    if kind in QUANTITIES:
        return _Token({"metric": "metric", "top1": "metric", "frames": "frames"}.get(kind, "cost"), kind)
    if kind not in NUMBERS:
        return _Token(kind)
    if kind == "share":
        return _Token(kind, number=_share(*match.groups()))
    text, *unit = match.groups()
    number = 2.0 if text is None else _number(text)  # twice, double
    scales = {"bytes": BYTES, "milliseconds": MILLISECONDS, "count": THOUSANDS}.get(kind, {})
    return _Token(kind, number=number * scales.get(unit[0], 1.0) if unit and unit[0] else number)


def _share(fraction: str | None, percent: str | None, decimal: str | None) -> float:
    """Return the number that one of these texts says."""
    if percent is not None:
        return _number(percent) / 100
    if fraction is None:
        return float(decimal or "nan")
    upper, _, lower = fraction.partition("/")
    return SHARES[fraction] if fraction in SHARES else int(upper) / (int(lower) or math.inf)


def _number(text: str) -> float:
    """Return the number that digits or a word say."""
    return float(NUMBER_WORDS.get(text) or text.replace(",", ""))
