"""Workers as actors of a Ray cluster, which places them on its machines."""

from __future__ import annotations

import logging
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.engines.processes import Process, end_in_words
from search.study.errors import UserError
from spaces.network.messages import first_line, number_of

if TYPE_CHECKING:
    from collections.abc import Sequence

LOOPBACK = "127.0.0.1"
LONGEST_ANSWER = 10.0  # seconds in which the cluster must answer (chosen)
LOST = 1  # exit code of a worker that Ray has lost


class OnMachine:
    """A worker's process on a machine of the cluster, seen from this machine: the actor.

    Parameters
    ----------
    arguments, environment
        See `search.engines.engine.Engine.start`.
    folder
        The working directory of the run; used where the machine has it.
    """

    def __init__(self, arguments: Sequence[str], environment: dict[str, str], folder: str) -> None:
        if Path(folder).is_dir():
            os.chdir(folder)
        self._process = Process(arguments, environment)

    def look(self) -> tuple[list[str], int | None]:
        """Return the lines that it has printed since the last call, and its exit code."""
        code = self._process.ended()
        return self._process.lines(), code

    def stop(self) -> None:
        """Ask it to stop."""
        self._process.stop()


class OnRay:
    """The engine that lets Ray place the workers: on the cluster that `RAY_ADDRESS` names, or on one that it starts.

    Parameters
    ----------
    threads
        CPU cores of a worker.
    gpus
        GPUs of a worker; a share of one if several workers are to have the same.

    Raises
    ------
    UserError
        If Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, threads: int, gpus: float) -> None:
        try:
            import ray  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise UserError('--engine ray needs the package ray: pip install "slimfront[distributed]"') from error
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no report to its makers by a cluster that we start
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its default warns
        self._ray: Any = ray
        try:
            self._connect()
        except (ConnectionError, ValueError, RuntimeError) as error:
            address = os.environ.get("RAY_ADDRESS", "not set")
            raise UserError(
                f"no Ray cluster can be reached or started: {first_line(error)}; check RAY_ADDRESS, which is {address}"
            ) from error
        self._actor = ray.remote(OnMachine).options(num_cpus=threads, num_gpus=gpus)

    def _connect(self) -> None:
        """Connect to the cluster that runs, or start one on this machine, for this machine only."""
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._ray.is_initialized():
            return
        _check_reachable(os.environ.get("RAY_ADDRESS", ""))
        try:
            self._ray.init(address="auto", **quiet)
        except ConnectionError:
            if "RAY_ADDRESS" in os.environ:
                raise
            self._ray.init(_node_ip_address=LOOPBACK, include_dashboard=False, **quiet)

    def words(self) -> str:
        """Describe the cluster in one line."""
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        resources = self._ray.cluster_resources()
        gpus = f", {resources['GPU']:.0f} GPUs" if "GPU" in resources else ""
        return f"Ray cluster of {number_of(len(nodes), 'machine')}, {resources.get('CPU', 0):.0f} cores{gpus}"

    def start(self, number: int, arguments: Sequence[str], environment: dict[str, str]) -> Placed:
        """Start a worker as soon as a machine is free."""
        del number
        return Placed(self._ray, self._actor.remote(list(arguments), environment, str(Path.cwd())))


def _check_reachable(address: str) -> None:
    """Check that somebody listens at `host:port`; Ray would try for minutes.

    Raises
    ------
    ConnectionError
        If nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=LONGEST_ANSWER).close()
    except OSError as error:
        raise ConnectionError(f"nobody answers at {address} ({error.strerror or error})") from error


class Placed:
    """A worker on the cluster.

    Parameters
    ----------
    ray
        The module.
    actor
        The actor.
    """

    def __init__(self, ray: Any, actor: Any) -> None:  # noqa: ANN401 - Ray makes both when it runs
        self._ray, self._actor = ray, actor
        self._answer = actor.look.remote()
        self._lines: list[str] = []
        self._code: int | None = None
        self._lost = ""
        self.waits = True

    def lines(self) -> list[str]:
        """Return the lines that it has printed since the last call."""
        found, self._lines = self._lines, []
        return found

    def ended(self) -> int | None:
        """Return its exit code, None as long as it runs or waits for a machine; the machine is not waited for."""
        if self._code is None and self._ray.wait([self._answer], timeout=0)[0]:
            self.waits = False
            try:
                lines, self._code = self._ray.get(self._answer)
                self._lines += lines
            except self._ray.exceptions.RayError as error:
                self._code, self._lost = LOST, type(error).__name__
            if self._code is None:
                self._answer = self._actor.look.remote()
            else:
                self._ray.kill(self._actor)
        return self._code

    def end_in_words(self) -> str:
        """Say how it ended."""
        assert self._code is not None
        return f"was lost by Ray ({self._lost})" if self._lost else end_in_words(self._code)

    def stop(self) -> None:
        """Ask it to stop after the trial under way; asked again, it stops at once. One without a machine ends."""
        if self.waits:
            self.kill()
        elif self._code is None:
            self._actor.stop.remote()

    def kill(self) -> None:
        """End it now, if it still runs; its process ends with its actor."""
        if self._code is None:
            self._ray.kill(self._actor)
            self._code = -signal.SIGKILL
