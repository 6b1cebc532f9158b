"""The goal of a study in words: the limits it becomes, that it is kept with the study, and how members meet it."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from typing import TYPE_CHECKING, Any

import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import create_trial

from objectives import Latency, LatencyShare, Limit, Loss, Macs, SizeBytes, Top1
from objectives.runtimes import LiteRt, OnnxRuntime
from search.cli import main
from search.proposals.defaults import resolved
from search.results.file_records import Member
from search.results.goal import best_for_goal, goal_note, relative_columns, standings
from search.study.attributes import keyed, numbers_of
from search.study.definition import define
from search.study.errors import UserError
from search.study.front import front, trained
from search.study.goal import beyond_teacher, limits_of_goal, measured_for_goal, with_goal, with_stored_goal
from search.study.records import EXCESS, GOAL, TEACHER, VALUES
from search.study.storage import open_study
from tests import small_study
from tests.small_study import searched, splits, study, teacher
from tests.test_goal_phrases import Energy

if TYPE_CHECKING:
    from pathlib import Path

    from search import StudySpec

DATA = splits().validation
STUDY = "my_study.py:study"


def asking(goal: str, **changes: Any) -> StudySpec:
    return dataclasses.replace(study(), goal=goal, **changes)


def limits(goal: str, **changes: Any) -> list[str]:
    """Return the limits of a goal as texts."""
    return [str(limit) for _, limit in limits_of_goal(asking(goal, **changes))]


def test_a_goal_becomes_limits_on_the_objectives_of_the_study() -> None:
    spec = with_goal(asking("4x smaller, 2x fewer multiply-adds, lose at most 1 point"))
    own, size, macs, top1 = spec.limits
    assert own == study().limits[0]
    assert [str(limit) for limit in (size, macs, top1)] == [
        "size_bytes <= 0.25 of the teacher's", "macs <= 0.5 of the teacher's", "top1 >= the teacher's - 1"
    ]  # fmt: skip
    assert size.objective is spec.objectives[1]
    assert top1.objective is spec.objectives[0]
    assert measured_for_goal(spec) == []
    assert with_goal(spec).limits == spec.limits


def test_a_goal_adds_what_the_study_does_not_measure() -> None:
    goal = "2x faster, 100k parameters, at least 30 fps, 5x fewer bit operations"
    spec = with_goal(asking(goal))
    assert measured_for_goal(spec) == ["latency_share", "parameters", "frame_p95_ms", "bops"]
    assert limits(goal) == [
        "latency_share <= 0.5", "parameters <= 100000", "frame_p95_ms <= 33.3333", "bops <= 0.2 of the teacher's"
    ]  # fmt: skip
    share = spec.limits[1].objective
    assert isinstance(share, LatencyShare)
    assert share.latency.runtime == spec.runtime
    assert share.latency.reference is spec.teacher
    assert len(share.latency.example) == 1


def test_time_in_milliseconds_and_speed_are_measured_once() -> None:
    goal = "2x faster, under 5 ms"
    assert limits(goal) == ["latency_ms <= 0.5 of the teacher's", "latency_ms <= 5"]
    first, second = (limit.objective for _, limit in limits_of_goal(asking(goal)))
    assert first is second


def test_speed_is_that_of_the_latency_which_the_study_measures() -> None:
    latency = Latency(OnnxRuntime(threads=2), teacher(), DATA.inputs[:4])
    both = (Top1(DATA), latency)
    assert limits("2x faster", objectives=both) == ["latency_ms <= 0.5 of the teacher's"]
    ((_, limit),) = limits_of_goal(asking("2x faster", objectives=both))
    assert limit.objective is latency
    share = LatencyShare(latency)
    assert [x.objective for _, x in limits_of_goal(asking("2x faster", reported=(share,)))] == [share]
    assert [x.objective for _, x in limits_of_goal(asking("at most 5 ms", reported=(share,)))] == [latency]


def test_sizes_are_those_of_files_for_the_runtime_of_the_study() -> None:
    ((_, limit),) = limits_of_goal(asking("half the size", objectives=(Top1(DATA),), runtime=LiteRt()))
    assert limit.objective == SizeBytes(LiteRt())


def test_what_is_lost_is_the_metric_of_the_study() -> None:
    loss = (Loss(DATA), SizeBytes())
    assert limits("lose at most 1%", objectives=loss) == ["loss_nats <= 1.01 of the teacher's"]
    assert limits("lose at most 0.1", objectives=loss) == ["loss_nats <= the teacher's + 0.1"]
    assert limits("lose nothing", objectives=loss) == ["loss_nats <= the teacher's"]
    assert limits("at least 92% accuracy", objectives=loss, reported=(Top1(DATA),)) == ["top1 >= 92"]
    assert limits("lose at most 1 point", objectives=(SizeBytes(),)) == ["top1 >= the teacher's - 1"]


def test_a_share_of_the_metric_is_one_of_the_teachers() -> None:
    loss = (Loss(DATA), SizeBytes())
    assert limits("at least 95% of the teacher's accuracy") == ["top1 >= 0.95 of the teacher's"]
    assert limits("keep 99% of the accuracy") == ["top1 >= 0.99 of the teacher's"]
    assert limits("lose at most 2% of the accuracy") == ["top1 >= 0.98 of the teacher's"]
    assert limits("at most 110% of the loss_nats", objectives=loss) == ["loss_nats <= 1.1 of the teacher's"]
    assert limits("within 1% of the teacher's accuracy") == limits("lose at most 1 point")
    assert limits("within 1% of the teacher", objectives=loss) == ["loss_nats <= 1.01 of the teacher's"]


def test_a_limit_on_the_metric_beyond_the_teacher_is_said() -> None:
    asked = [limit.against(58) for _, limit in limits_of_goal(asking("at least 95% accuracy, top1>=50, lose nothing"))]
    (line,) = beyond_teacher(asked, {"top1": 58.0})
    assert line.startswith("the teacher itself does not meet top1 >= 95: its top1 is 58, so a candidate must become")


@pytest.mark.parametrize(
    ("goal", "changes", "message"),
    [
        ("at least 92% accuracy", {"objectives": (Loss(DATA),)}, "loss_nats is to be minimized, so say loss_nats<="),
        ("lose at most 1 point", {"objectives": (Loss(DATA),)}, "loss_nats is not in percent, so name the number in"),
        ("top1<=3", {}, "'top1<=3' does not fit this study: top1 is to be maximized, so say top1>=VALUE"),
        ("energy_mj>=3", {"reported": (Energy(),)}, "energy_mj is to be minimized, so say energy_mj<=VALUE"),
        ("at most 90% of the accuracy", {}, "top1 is to be maximized, so say top1>=VALUE"),
        ("lose at most 150% of the accuracy", {}, "of top1 less than all can be lost"),
        ("size within 10%", {}, "say 'at most 10% of the size_bytes' or 'at most 110% of the size_bytes'"),
        ("within 2 points", {"objectives": (Loss(DATA),)}, "name the number in its own unit, such as 'lose"),
        ("top1>=92", {"objectives": (Loss(DATA),)}, "needs an objective top1, but what the study measures is loss"),
        ("banana", {}, "'banana' cannot be read as a goal; a goal consists of phrases such as '4x smaller', "),
    ],
)  # fmt: skip
def test_a_goal_that_does_not_fit_the_study_is_an_error(goal: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        with_goal(asking(goal, **changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_text_of_a_goal_is_not_compared_but_its_limits_are() -> None:
    one, same, other = (define(resolved(asking(goal))) for goal in ("half the size", "2x smaller", "3x smaller"))
    assert one == same
    assert one != other


def test_a_stored_study_keeps_its_goal(tmp_path: Path) -> None:
    found = searched(asking("half the size, lose at most 20 points"), tmp_path)
    assert found.user_attrs[GOAL] == {"text": "half the size, lose at most 20 points", "runtime": "onnx"}
    again = open_study(resolved(study()), tmp_path, None, create=False)
    spec = with_stored_goal(again, resolved(study()))
    assert [str(limit) for limit in spec.limits[1:]] == [
        "size_bytes <= 0.5 of the teacher's", "top1 >= the teacher's - 20"
    ]  # fmt: skip
    size, top1 = (found.user_attrs[TEACHER][name] for name in ("size_bytes", "top1"))
    assert all(numbers_of(trial, VALUES)["size_bytes"] <= size / 2 for trial in front(found))
    assert all(numbers_of(trial, VALUES)["top1"] >= top1 - 20 for trial in front(found))
    assert open_study(resolved(asking("2x smaller, lose at most 20 points")), tmp_path, None, create=True)
    message = (
        "the study 'small' was started with the goal 'half the size, lose at most 20 points', so it cannot continue "
        "with '4x smaller'; leave --goal out"
    )
    with pytest.raises(UserError, match=message):
        open_study(resolved(asking("4x smaller")), tmp_path, None, create=True)


def test_a_goal_cannot_be_added_to_a_study_that_has_candidates(tmp_path: Path) -> None:
    searched(study(1), tmp_path)
    with pytest.raises(UserError, match="was started with no goal, so it cannot continue with '4x smaller'"):
        open_study(resolved(asking("4x smaller")), tmp_path, None, create=True)


def test_before_the_first_candidate_a_goal_may_change(tmp_path: Path) -> None:
    for goal in ("999x smaller", "2x smaller"):
        stored = open_study(resolved(asking(goal)), tmp_path, None, create=True)
        assert stored.user_attrs[GOAL]["text"] == goal
        assert str(with_stored_goal(stored, resolved(study())).limits[1]) == str(with_goal(asking(goal)).limits[1])


def test_a_worker_that_joins_before_the_first_candidate_keeps_the_goal(tmp_path: Path) -> None:
    open_study(resolved(asking("2x smaller")), tmp_path, None, create=True).set_user_attr("anchors", value=True)
    joined = open_study(resolved(study()), tmp_path, None, create=True)
    assert joined.user_attrs["anchors"]
    corrected = open_study(resolved(dataclasses.replace(study(), seed=3)), tmp_path, None, create=True)
    assert "anchors" not in corrected.user_attrs
    assert corrected.user_attrs[GOAL] == {"text": "2x smaller", "runtime": "onnx"}


def test_a_stored_goal_is_about_the_files_that_it_was_given_for(tmp_path: Path) -> None:
    spec = resolved(asking("half the size, 2x faster", objectives=(Top1(DATA),), runtime=LiteRt()))
    stored = open_study(spec, tmp_path, None, create=True)
    stored.add_trial(create_trial(values=[90.0]))
    own = resolved(dataclasses.replace(study(), objectives=(Top1(DATA),)))
    assert open_study(own, tmp_path, None, create=True)
    found = with_stored_goal(stored, own)
    assert found.runtime == OnnxRuntime()
    assert found.limits[1].objective == SizeBytes(LiteRt())
    share = found.limits[2].objective
    assert isinstance(share, LatencyShare)
    assert share.latency.runtime == LiteRt()


def record(top1: float, size: int, ratio: float) -> dict[str, Any]:
    return {
        "top1_file": top1, "file_bytes": size, "teacher_file_bytes": 1000, "agreement_percent": 100.0,
        "latency": {"ratio": ratio, "cpu_ms": 2 * ratio},
    }  # fmt: skip


@pytest.fixture
def measured() -> tuple[optuna.Study, StudySpec, list[Member]]:
    """Return a study with three members of its front; on the files, the second and the third meet the goal."""
    spec = with_goal(asking("4x smaller, 2x faster, lose at most 2 points", limits=()))
    found = optuna.create_study(directions=["maximize", "minimize"])
    found.set_user_attr(TEACHER, {"top1": 99.0, "size_bytes": 1010.0, "latency_share": 1.01})
    records = (record(98.9, 260, 0.4), record(98.0, 240, 0.45), record(97.5, 100, 0.3))
    for one in records:
        values = {"top1": one["top1_file"], "size_bytes": one["file_bytes"] - 10, "latency_share": 0.4}
        excess = {str(limit): -0.1 for limit in spec.limits}
        found.add_trial(
            create_trial(
                values=[values["top1"], values["size_bytes"]],
                user_attrs=keyed(VALUES, values) | keyed(EXCESS, excess),
            )
        )
    return found, spec, [Member(trial, one) for trial, one in zip(found.trials, records, strict=True)]


def test_members_are_compared_with_the_limits_on_their_files(
    measured: tuple[optuna.Study, StudySpec, list[Member]],
) -> None:
    found, spec, members = measured
    size, share, top1 = standings(found, spec, members[0])
    assert [size.value, size.limit.bound, size.used] == pytest.approx([260, 250, 1.04])
    assert [share.value, share.limit.bound, share.used] == pytest.approx([0.4, 0.5, 0.8])
    assert [top1.value, top1.limit.bound, top1.used] == pytest.approx([98.9, 97, 0.05])


def test_the_best_member_uses_its_most_used_limit_least(
    measured: tuple[optuna.Study, StudySpec, list[Member]],
) -> None:
    found, spec, members = measured
    assert best_for_goal(found, spec, members).trial.number == 2  # uses 0.75 of the loss; trial 1 uses 0.96 of the size
    assert best_for_goal(found, spec, members[:2]).trial.number == 1
    note = goal_note(found, spec, members)
    assert note.startswith(f"goal {spec.goal!r}: met by trials 1, 2; best is trial 2 (its file): size_bytes 100 (")
    assert goal_note(found, spec, members[:1]).startswith(
        f"goal {spec.goal!r}: not met by any file; nearest is trial 0"
    )
    assert goal_note(found, dataclasses.replace(spec, goal=""), members) == ""


def test_without_a_file_the_values_of_the_search_count(measured: tuple[optuna.Study, StudySpec, list[Member]]) -> None:
    found, spec, members = measured
    bare = [Member(member.trial, {}) for member in members]
    assert [standing.value for standing in standings(found, spec, bare[0])] == [250, 0.4, 98.9]
    assert "(the network in torch; no file is verified yet)" in goal_note(found, spec, bare)


def test_the_table_shows_relative_limits_in_their_terms(
    measured: tuple[optuna.Study, StudySpec, list[Member]],
) -> None:
    found, spec, members = measured
    assert relative_columns(found, spec, members[2].trial) == {
        "size_bytes_of_teacher": pytest.approx(0.225),  # 0.1 below the limit, as found when it was measured
        "top1_lost": 1.5,
    }
    assert relative_columns(found, spec, None) == {"size_bytes_of_teacher": 1.0, "top1_lost": 0.0}
    least = dataclasses.replace(spec, limits=(Limit(Macs(DATA.inputs), at_most=5),))
    assert relative_columns(found, least, None) == {}


@pytest.fixture(scope="module")
def reached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which a study with a goal was run by the command line."""
    folder = tmp_path_factory.mktemp("reached")
    shutil.copy(small_study.__file__, folder / "my_study.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        goal = "2x smaller, 1.2x fewer parameters, lose at most 40 points"
        assert main(["run", STUDY, "--goal", goal, "--trials", "6"]) == 0
    return folder


def test_run_tells_what_a_goal_means_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(small_study.__file__, tmp_path / "my_study.py")
    monkeypatch.chdir(tmp_path)
    goal = ["--goal", "2x smaller, 2x fewer parameters and lose at most 60 points"]
    assert main(["run", STUDY, "--unverified", "--trials", "2", *goal]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert "goal '2x smaller': size_bytes <= 0.5 of the teacher's (1,818)" in lines
    assert "goal '2x fewer parameters': parameters <= 0.5 of the teacher's (398); measured for this goal" in lines
    assert any(line.startswith("goal 'lose at most 60 points': top1 >= the teacher's - 60 (") for line in lines)
    assert f"for a file: slimfront export {STUDY} --pick goal" in lines
    assert main(["run", STUDY, "--unverified", "--trials", "3"]) == 0
    assert "goal '2x smaller': size_bytes <= 0.5 of the teacher's (1,818)" in capsys.readouterr().err
    storage = JournalStorage(JournalFileBackend("runs/small/journal.log"))
    for trial in trained(optuna.load_study(study_name="small", storage=storage)):
        assert numbers_of(trial, VALUES)["parameters"] <= 398
        assert len(numbers_of(trial, EXCESS)) == 4
    assert main(["run", STUDY, "--goal", "4x smaller"]) == 2
    assert "so it cannot continue with '4x smaller'; leave --goal out" in capsys.readouterr().err


def test_a_goal_out_of_reach_is_reported_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(small_study.__file__, tmp_path / "my_study.py")
    monkeypatch.chdir(tmp_path)
    assert main(["run", STUDY, "--goal", "9x smaller, half the multiply-adds"]) == 2
    *_, macs, size, also_macs, error = capsys.readouterr().err.splitlines()
    assert macs.startswith("limit macs <= 8371.2: met by ")
    assert size.startswith("limit size_bytes <= 0.111111 of the teacher's (404): missed by ")
    assert also_macs.startswith("limit macs <= 0.5 of the teacher's (6,976): met by ")
    assert error.startswith("slimfront: the limit size_bytes <= 0.111111 of the teacher's (404) cannot be met: ")
    assert "; loosen only this limit, to " in error
    assert " times less), or extend the range of " in error
    assert not (tmp_path / "runs" / "small" / "candidates").exists()


def test_a_goal_that_no_candidate_reached_is_reported_after_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(small_study.__file__, tmp_path / "my_study.py")
    monkeypatch.chdir(tmp_path)
    assert main(["run", STUDY, "--trials", "2", "--goal", "2x smaller, top1>=101"]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert any(line.startswith("the teacher itself does not meet top1 >= 101: its top1 is ") for line in printed)
    searched_lines = printed[-4:]
    assert [line.split(":")[0] for line in searched_lines] == [
        "limit macs <= 8371.2", "limit size_bytes <= 0.5 of the teacher's (1,818)", "limit top1 >= 101", "slimfront"
    ]  # fmt: skip
    assert "no candidate meets all limits; the nearest, trial " in searched_lines[-1]
    assert "; loosen only this limit, to " in searched_lines[-1]
    for command in ("front", "report", "confirm", "export"):
        assert main([command, STUDY]) == 2
        assert capsys.readouterr().err.splitlines() == searched_lines


def test_every_command_uses_the_stored_goal(
    reached: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(reached)
    assert main(["front", STUDY, "--format", "csv"]) == 0
    printed = capsys.readouterr()
    table = pd.read_csv(io.StringIO(printed.out)).set_index("trial")
    members = table.drop("teacher")
    assert (members["size_bytes_of_teacher"] <= 0.5).all()
    assert (members["top1_lost"] <= 40).all()
    assert (members["parameters"] <= table["parameters"]["teacher"] / 1.2).all()
    assert set(members["file_feasible"]) <= {"yes", "no"}
    assert (members["agreement_percent"] >= 99).all()
    assert (members["file_latency_ms"] > 0).all()
    assert "goal '2x smaller, 1.2x fewer parameters, lose at most 40 points': met by trial" in printed.err
    assert main(["report", STUDY]) == 0
    page = (reached / "runs" / "small" / "report" / "front.html").read_text()
    assert '"words": "size_bytes \\u003c= 0.5 of the teacher\'s (1,818)"' in page
    assert "met by trial" in page
    assert main(["confirm", STUDY, "--pick", "goal", "--seeds", "1"]) == 0
    assert "met by trial" in capsys.readouterr().err


@pytest.mark.slow
def test_without_a_pick_the_member_that_meets_the_goal_best_is_exported(
    reached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(reached)
    numbers = set()
    for pick in ([], ["--pick", "goal"]):
        out = tmp_path / str(len(pick))
        assert main(["export", STUDY, "--out", str(out), *pick]) == 0
        numbers.add(json.loads((out / "verification.json").read_text())["trial"])
    assert len(numbers) == 1
    assert main(["front", STUDY]) == 0
    assert f"is trial {numbers.pop()} (its file)" in capsys.readouterr().err


def test_a_goal_with_an_unknown_phrase_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(small_study.__file__, tmp_path / "my_study.py")
    monkeypatch.chdir(tmp_path)
    assert main(["run", STUDY, "--goal", "4x smaller, nicer"]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert printed.startswith("slimfront: 'nicer' cannot be read as a goal; a goal consists of phrases such as '4x sma")
    assert not (tmp_path / "runs").exists()
