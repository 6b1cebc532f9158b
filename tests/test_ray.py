"""Workers that Ray places: on the machines of a cluster, of which one may be lost."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from search.study.front import trained
from tests.several import check, finished, folder_of_study, has_trained, opened, started, wait_until

pytest.importorskip("ray", reason="ray is not installed: pip install slimfront[distributed]")

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOOPBACK = {"node_ip_address": "127.0.0.1", "include_dashboard": False}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with folder_of_study(tmp_path) as found:
        yield found


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield a cluster of two machines of one core each, on loopback."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster_utils: Any = pytest.importorskip("ray.cluster_utils")

    found = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **LOOPBACK})
    for _ in range(2):
        found.add_node(num_cpus=1, **LOOPBACK)
    monkeypatch.setenv("RAY_ADDRESS", found.address)
    yield found
    found.shutdown()


def test_the_workers_of_a_cluster_share_a_database(folder: Path, cluster: Any, postgresql: str) -> None:
    words = "run", "my_study.py:study", "--workers", "2", "--engine", "ray", "--trials", "6", "--storage", postgresql
    printed = finished(started(folder, *words))
    assert "Ray cluster of 3 machines, 2 cores" in printed
    study = check(folder, 6, postgresql)
    assert len({trial.user_attrs["worker"] for trial in trained(study)}) == 2


@pytest.mark.slow
def test_a_lost_machine_loses_no_trial(folder: Path, cluster: Any, postgresql: str) -> None:
    words = (
        "run", "my_study.py:study", "--workers", "2", "--engine", "ray", "--trials", "7", "--storage", postgresql,
        "--set", "epochs=25", "--unverified",
    )  # fmt: skip
    process = started(folder, *words)
    wait_until(has_trained(folder, 1, postgresql))
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    cluster.add_node(num_cpus=1, **LOOPBACK)
    assert "was lost by Ray (ActorDiedError): it is started again" in finished(process)
    check(folder, 7, postgresql)


@pytest.mark.slow
def test_workers_without_a_free_machine_are_not_waited_for(folder: Path, cluster: Any, postgresql: str) -> None:
    words = "run", "my_study.py:study", "--workers", "5", "--engine", "ray", "--trials", "4", "--storage", postgresql
    finished(started(folder, *words, "--unverified"))
    assert len(trained(opened(folder, postgresql))) == 4


@pytest.mark.slow
def test_a_cluster_is_started_where_there_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    printed = finished(started(folder, "run", "my_study.py:study", "--engine", "ray", "--trials", "2", "--unverified"))
    assert "Ray cluster of 1 machine" in printed
    check(folder, 2)


def test_a_cluster_that_cannot_be_reached_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("RAY_gcs_rpc_server_connect_timeout_s", "1")
    process = started(folder, "run", "my_study.py:study", "--engine", "ray", "--workers", "2")
    assert "no Ray cluster can be reached or started" in finished(process, 2)
    assert os.environ["RAY_ADDRESS"] == "127.0.0.1:1"
