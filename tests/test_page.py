"""The page of a report, in a real browser: what it shows, and what clicks and keys do."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shlex
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torchvision.models import mobilenet_v3_small

from objectives import Examples, Limit, Macs, Parameters, SizeBytes, Top1
from search import Budget, Recipe, Splits, StudySpec, UniformStart
from search.commands.loading import with_weights
from search.evaluation.reference import prepared
from search.results.confirm import confirm
from search.results.export import verify_front
from search.results.file_records import with_records
from search.results.intervals import of_share
from search.results.pick import pick
from search.results.report import PAGE, report
from search.study.files import CHECKSUM, save_json
from search.study.front import front
from search.study.records import REASON, TEACHER
from search.study.weights import CONFIRMED, state_path
from spaces import BitWidths, PruneRatios, Ranks, Space, Temperatures
from tests import browser
from tests.small_study import context, searched, study

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from optuna import Study

    from search.results.file_records import Member

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason=browser.MISSING)

LARGEST_PAGE = 5e6  # bytes
DOUBLE_CLICK_MS = 400
SMALLEST_TEXT = 12.0  # pixels
PAGES = "verified", "layers_54", "four_objectives"
TRIALS = 16
SHARE = 0.45  # of the multiply-adds, so low that some candidates are refused
PLACE = """number => {
    const one = byNumber.get(number), {_size, xaxis, yaxis} = element("scatter")._fullLayout;
    const box = element("scatter").getBoundingClientRect(), [x, y] = [value(one, state.x), value(one, state.y)];
    return [box.left + _size.l + xaxis.d2p(x), box.top + _size.t + yaxis.d2p(y)];
}"""
SIZES = """[...document.querySelectorAll("#table tbody tr")].map(
    row => value(byNumber.get(Number(row.dataset.number)), "size_bytes") ?? Infinity)"""
TEXT_SIZES = """() => [...document.querySelectorAll("body *")].filter(one => [...one.childNodes].some(
    node => node.nodeType === 3 && node.textContent.trim()) && one.getClientRects().length && !one.closest("script"))
    .map(one => [parseFloat(getComputedStyle(one).fontSize), one.tagName, one.textContent.slice(0, 30)])"""


def _reported(spec: StudySpec, home: Path, *, verified: bool) -> tuple[Study, list[Member], Path]:
    found = searched(spec, home)
    shared = context(spec)
    if verified:
        _, reference = prepared(spec, torch.device("cpu"), home)
        trials = front(found)
        broken = state_path(home, trials[-1].number)  # the weights of one member are not what was recorded
        broken.write_bytes(broken.read_bytes()[:-8] + b"damaged!")
        assert len(verify_front(with_weights(trials, home), shared, home, reference)) == 1
    members = with_records(front(found), spec.runtime, home)
    report(found, shared, members, home, home / "report", "my_study.py:study")
    return found, members, home / "report" / PAGE


def _mobile() -> StudySpec:
    """Return a study of 54 layers with three objectives and a limit, on random images."""
    torch.manual_seed(0)
    network = mobilenet_v3_small(width_mult=0.25, num_classes=4).eval()
    images = torch.randn(24, 3, 32, 32)
    data = Examples(images, torch.arange(24) % 4)
    macs = Macs(images)
    return StudySpec(
        "mobile", network, Splits(data, data, data),
        Space((PruneRatios(), Ranks(), BitWidths(weights=(4, 8), activations=(8,))), Temperatures()),
        objectives=(Top1(data), SizeBytes(), macs), limits=(Limit(macs, at_most=0.8 * macs(network)),),
        recipe=Recipe(epochs=1, batch_size=8, learning_rate=1e-3), budget=Budget(trials=3), start=UniformStart(),
        calibration=8,
    )  # fmt: skip


def _four() -> StudySpec:
    spec = study(3)
    macs = spec.limits[0].objective
    return dataclasses.replace(spec, objectives=(*spec.objectives, macs, Parameters()))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Study, list[Member], Path]]:
    homes = {name: tmp_path_factory.mktemp(name) for name in PAGES}
    return {
        "verified": _reported(study(TRIALS, SHARE), homes["verified"], verified=True),
        "layers_54": _reported(_mobile(), homes["layers_54"], verified=False),
        "four_objectives": _reported(_four(), homes["four_objectives"], verified=False),
    }


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    with browser.browser() as found:
        yield found


@pytest.fixture
def page(made: dict[str, Any], started: Any) -> Iterator[Any]:
    with browser.opened(started, made["verified"][2]) as found:
        yield found


def _facts(page: Any) -> dict[str, Any]:
    return dict(page.evaluate("facts"))


def _chosen(page: Any) -> int:
    found = re.search(r"Trial (\d+)", page.locator("#member-body h3").first.inner_text())
    assert found
    return int(found[1])


def _numbers(page: Any) -> list[int]:
    return [int(row.get_attribute("data-number")) for row in page.locator("#table tbody tr").all()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_legible_at_each_width_in_light_and_dark(
    made: dict[str, Any], started: Any, name: str, width: int, scheme: str
) -> None:
    """It asks no network and reports no error (`opened`), nothing sticks out, and no text is small."""
    path = made[name][2]
    assert path.stat().st_size < LARGEST_PAGE
    with browser.opened(started, path, width, scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        small = [found for found in page.evaluate(TEXT_SIZES) if found[0] < SMALLEST_TEXT]
        assert not small
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", dark))) < 300) == (scheme == "dark")
        assert page.evaluate("document.querySelectorAll('#scatter .point').length") >= len(made[name][1])
        headings = page.locator("h1, h2").filter(visible=True).all_inner_texts()
        assert len(headings) == len(set(headings)) == (8 if len(made[name][1]) > 1 else 6)
        assert page.locator("#layers tbody tr").count() == len(_facts(page)["layers"])
        assert not page.locator("text=/chart.?studio|plotly/i").count()


def test_the_large_network_has_54_layers_and_a_staircase_for_three_objectives(
    made: dict[str, Any], started: Any
) -> None:
    with browser.opened(started, made["layers_54"][2]) as page:
        assert page.locator("#layers tbody tr").count() == 54
        assert "attained" in page.locator("#legend").inner_text()
        assert "not verified yet" in page.locator("#member-body").inner_text()
    with browser.opened(started, made["four_objectives"][2]) as page:
        assert "attained" not in page.locator("#legend").inner_text()  # of four objectives, points alone


def test_marks_tell_what_became_of_each_candidate(made: dict[str, Any], page: Any) -> None:
    found, members, _ = made["verified"]
    legend = page.locator("#legend").inner_text()
    refused = [trial for trial in found.trials if trial.user_attrs.get(REASON, "").startswith("exceeds")]
    assert refused
    assert f"refused before training ({len(refused)}" in legend
    assert f"front, file measured ({len(members) - 1})" in legend
    assert "front, file failed (1)" in legend
    for mark in ("teacher", "teacher at 8 bits, not trained", "knee", "chosen", "attained", "from prediction to file"):
        assert mark in legend
    page.select_option("#x", "macs")  # the limit is on it
    assert page.locator("#scatter .shapelayer path").count() == 1
    assert "Shaded: beyond a limit." in page.locator("#scatter-note").inner_text()
    assert _facts(page)["eight_bits"].keys() == _facts(page)["teacher"].keys()


def test_a_point_is_what_the_file_measured(made: dict[str, Any], page: Any) -> None:
    _, members, _ = made["verified"]
    for trial, record in members:
        if record:
            at = page.evaluate(
                f"[value(byNumber.get({trial.number}), 'size_bytes'), value(byNumber.get({trial.number}), 'top1')]"
            )
            assert at == [record["file_bytes"], pytest.approx(record["top1_file"])]


def test_intervals_are_those_of_wilson(made: dict[str, Any], page: Any) -> None:
    _, members, _ = made["verified"]
    facts = _facts(page)
    for trial, record in members:
        if record:
            low, high = facts["members"][str(trial.number)]["intervals"]["top1"]
            assert (low, high) == pytest.approx(of_share(record["top1_file"], 100))
    assert of_share(90.0, 100) == pytest.approx((82.56, 94.48), abs=0.01)  # Brown, Cai and DasGupta 2001, by hand
    assert page.locator("#scatter .errorbars path").count()


def test_a_click_on_a_point_a_row_or_a_key_chooses_the_member_everywhere(page: Any) -> None:
    numbers = [one["number"] for one in _facts(page)["candidates"] if one["on_front"]]
    for number in numbers[:3]:
        place = page.evaluate(PLACE, number)
        page.mouse.move(*place)
        shown = "number => document.querySelector('#scatter .hoverlayer').textContent.includes(`trial ${number},`)"
        page.wait_for_function(shown, arg=number)
        page.wait_for_timeout(DOUBLE_CLICK_MS)  # two clicks in a shorter time are a double click
        page.mouse.click(*place)
        page.wait_for_function("number => state.chosen === number", arg=number)
        assert _chosen(page) == number
        assert page.locator("#table tr[aria-selected=true]").get_attribute("data-number") == str(number)
        assert page.locator("#layers-of").input_value() == str(number)
        assert f"--pick {number}" in page.locator("#command").inner_text()
    row = page.locator(f'#table tr[data-number="{numbers[0]}"]')
    row.click()
    assert _chosen(page) == numbers[0]
    row.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert _chosen(page) == _numbers(page)[_numbers(page).index(numbers[0]) + 1]
    page.locator("#scatter").focus()
    before = _chosen(page)
    page.keyboard.press("ArrowRight")
    assert _chosen(page) != before
    assert _chosen(page) in numbers


def test_the_failed_file_says_why_and_a_refused_candidate_too(made: dict[str, Any], page: Any) -> None:
    found, members, _ = made["verified"]
    broken = next(trial for trial, record in members if not record)
    page.locator(f'#table tr[data-number="{broken.number}"]').click()
    text = page.locator("#member-body").inner_text()
    assert "its file failed" in text
    assert re.search(r"failed: .*safetensors", text)
    refused = next(trial for trial in found.trials if trial.user_attrs.get(REASON, "").startswith("exceeds"))
    page.locator(f'#table tr[data-number="{refused.number}"]').click()
    assert "exceeds the limit macs" in page.locator("#member-body").inner_text()


def test_the_table_is_sorted_and_filtered(made: dict[str, Any], page: Any) -> None:
    found, _, _ = made["verified"]
    assert sorted(_numbers(page)) == [trial.number for trial in found.trials]
    head = page.locator('#table [data-sort="size_bytes"]')
    head.click()
    assert page.locator("#table th[aria-sort=ascending]").inner_text().startswith("file size")
    sizes = page.evaluate(SIZES)
    assert sizes == sorted(sizes)
    head.click()
    assert page.locator("#table th[aria-sort=descending]").count() == 1
    page.fill("#filter", "top1>=60")
    kept = page.evaluate("facts.candidates.filter(one => value(one, 'top1') >= 60).map(one => one.number)")
    assert sorted(_numbers(page)) == sorted(kept)
    assert len(kept) < len(found.trials)
    page.fill("#filter", "")
    page.select_option("#status", "rejected")
    assert _numbers(page)
    assert all(found.trials[number].user_attrs[REASON].startswith("exceeds") for number in _numbers(page))


def test_the_sliders_give_a_sentence_that_picks_among_what_fits(made: dict[str, Any], page: Any) -> None:
    found, members, _ = made["verified"]
    slider = page.locator("#slider-size_bytes")
    assert slider.get_attribute("aria-valuetext") == "any"
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert slider.get_attribute("aria-valuetext").startswith("at most ")
    fitting = [int(one.get_attribute("data-number")) for one in page.locator("#fitting [data-number]").all()]
    assert 0 < len(fitting) < len(members)
    words = shlex.split(page.locator("#sentence").inner_text())
    assert words[:4] == ["slimfront", "export", "my_study.py:study", "--pick"]
    assert pick(found, study(TRIALS, SHARE), members, words[4]).number in fitting
    page.locator("#copy-sentence").click()
    page.wait_for_selector("#copied-sentence:has-text('copied')")
    assert shlex.split(page.evaluate("navigator.clipboard.readText()")) == words


def test_two_members_stand_side_by_side(page: Any) -> None:
    numbers = [one["number"] for one in _facts(page)["candidates"] if one["on_front"]]
    page.select_option("#layers-of", str(numbers[0]))
    page.select_option("#beside", str(numbers[-1]))
    head = page.locator("#layers thead").inner_text()
    assert f"trial {numbers[0]}" in head
    assert f"trial {numbers[-1]}" in head
    page.check("#changed-only")
    plans, layers, ends = _facts(page)["plans"], _facts(page)["layers"], (numbers[0], numbers[-1])
    changed = [at for at, layer in enumerate(layers) if any(plans[str(end)][at] != layer["now"] for end in ends)]
    assert page.locator("#layers tbody tr").count() == len(changed)


def test_layers_add_up_to_the_costs_of_the_network(made: dict[str, Any], page: Any) -> None:
    found, members, _ = made["verified"]
    facts = _facts(page)
    assert sum(layer["now"][4] for layer in facts["layers"]) == found.user_attrs[TEACHER]["macs"]
    for trial, _ in members:
        assert sum(row[4] for row in facts["plans"][str(trial.number)]) == trial.user_attrs["measured:macs"]


def test_the_page_prints_in_light_colours_without_controls(made: dict[str, Any], started: Any, tmp_path: Path) -> None:
    with browser.opened(started, made["verified"][2], scheme="dark") as page:
        page.emulate_media(media="print")
        page.wait_for_function("document.documentElement.dataset.theme === 'light'")
        assert not page.locator("#filter").is_visible()
        assert page.locator("#table tbody tr").last.is_visible()
        assert len(page.pdf()) > 50_000
        page.emulate_media(media="screen")
        page.wait_for_function("document.documentElement.dataset.theme === undefined")


@pytest.mark.slow
def test_a_page_that_renews_itself_keeps_what_was_chosen(made: dict[str, Any], started: Any, tmp_path: Path) -> None:
    found, members, path = made["verified"]
    home, out = path.parent.parent, tmp_path / "watched"
    report(found, context(study(TRIALS, SHARE)), members, home, out, refresh_seconds=1.0)
    with browser.opened(started, tmp_path / "watched" / PAGE) as page:
        other = next(trial.number for trial, _ in members if trial.number != _chosen(page))
        page.locator(f'#table tr[data-number="{other}"]').click()
        page.evaluate("window.old = true")
        page.wait_for_function("!window.old && document.documentElement.dataset.ready", timeout=20_000)
        assert _chosen(page) == other


def test_names_and_reasons_are_shown_as_text(made: dict[str, Any], started: Any, tmp_path: Path) -> None:
    """A study may be called anything; no part of it becomes a part of the page."""
    found, members, path = made["verified"]
    home, out = path.parent.parent, tmp_path / "page"
    report(found, context(study(TRIALS, SHARE)), members, home, out, "</script><b>x.py:study")
    assert "</script><b>" not in (tmp_path / "page" / PAGE).read_text()
    with browser.opened(started, tmp_path / "page" / PAGE) as page:
        assert "</script><b>x.py:study" in page.locator("#command").inner_text()


def test_the_facts_are_json_without_numbers_that_are_none(made: dict[str, Any]) -> None:
    text = made["verified"][2].read_text()
    found = re.search(r'<script type="application/json" id="facts">(.*?)</script>', text, re.DOTALL)
    assert found
    json.loads(found[1], parse_constant=functools.partial(pytest.fail))


def test_what_confirm_and_other_runtimes_measured_is_shown(made: dict[str, Any], started: Any, tmp_path: Path) -> None:
    found, members, path = made["four_objectives"]
    home, shared, chosen = path.parent.parent, context(_four()), members[0].trial
    confirm([chosen], shared, home, 2)
    other = home / "verified/litert" / f"{chosen.number}.json"
    _, verified, _ = made["verified"]
    record = next(record for _, record in verified if record)
    save_json(other, {name: value for name, value in record.items() if name != CHECKSUM} | {"runtime": "litert"})
    report(found, shared, members, home, tmp_path / "page")
    with browser.opened(started, tmp_path / "page" / PAGE) as page:
        page.locator(f'#table tr[data-number="{chosen.number}"]').click()
        text = page.locator("#member-body").inner_text()
    runs = [json.loads((home / CONFIRMED / f"{chosen.number}-seed{seed}.json").read_text()) for seed in (0, 1)]
    mean = sum(run["values"]["test_top1"] for run in runs) / 2
    assert re.search(rf"test, top1: {mean:.1f}\d? ± [\d.]+ \(2 trainings\)", text)
    assert f"File for litert\n\nverified: top-1 {record['top1_file']:.2f}%" in text
