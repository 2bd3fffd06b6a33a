"""Work on many machines, by Ray (https://docs.ray.io).

Nothing of Ray is imported before a cluster is asked for. Ray starts a process for each core, sends
it the work and what all parts of it share, and gives a part whose process or machine has died to
another one. So the work on a part must be such that it can be begun again: files are written as
`formats` does, and what a dead process had finished stays.

Machines must see the same files under the same paths and have d2net installed.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from d2net.errors import D2NetError, InputError, MissingPackageError, OutputBusyError

Shared = TypeVar("Shared")
Part = TypeVar("Part")
Result = TypeVar("Result")

_LIVES = 10
"""How often a part is begun again after its process has died; what kills it may be in the part."""

_WAIT_FOR_THE_DEAD = 60
"""Seconds until a process that the cluster holds for dead lets go of its files."""


@contextmanager
def connected(address: str, *, gpu: bool = False) -> Iterator[Cluster]:
    """The cluster at an address; one that this process is connected to already is used as it is.

    Args:
        address: "auto" for the one that this machine is part of, or host:port of its head.
        gpu: a process for each GPU instead of each core.

    Raises:
        MissingPackageError: Ray is not installed.
        InputError: there is no cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingPackageError(
            'a cluster needs the package ray: pip install "d2net[cluster]"'
        ) from error

    ours = not ray.is_initialized()
    if ours:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
        try:
            ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"there is no Ray cluster at {address!r} ({reason}); start one with "
                "`ray start --head`, and `ray start --address HOST:PORT` on its other machines"
            ) from error
    try:
        yield Cluster(ray, gpu)
    finally:
        if ours:
            ray.shutdown()


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process is connected to; see `connected`."""

    _ray: Any
    _gpu: bool

    @property
    def count(self) -> int:
        """How many processes can work at the moment."""
        return max(1, int(self._ray.cluster_resources().get("GPU" if self._gpu else "CPU", 0)))

    def run(
        self,
        work: Callable[[Shared, Part], Result],
        shared: Shared,
        parts: Iterable[Part],
    ) -> Iterator[Result]:
        """What `work(shared, part)` returns for every part, as they are finished.

        Args:
            work: a function of a module. It may be called again for a part that it has begun.
            shared: sent once to each process, which keeps it.
            parts: small; those that take long should come first.

        Raises:
            D2NetError: whatever `work` raises of that kind, or processes died over and over again.
        """
        ray = self._ray
        options = {"num_cpus": 1, "num_gpus": int(self._gpu), "scheduling_strategy": "SPREAD"}
        remote = ray.remote(_work).options(max_retries=_LIVES, **options)
        reference = ray.put(shared)
        waiting = deque(parts)
        running: set[Any] = set()
        try:
            while waiting or running:
                while waiting and len(running) < 2 * self.count:
                    # In a list, a reference is sent as such: each process fetches it once.
                    running.add(remote.remote(work, [reference], waiting.popleft()))
                (ready, *_), _ = ray.wait(list(running))
                running.remove(ready)
                yield self._result(ready)
        finally:
            for part in running:
                ray.cancel(part, force=True)

    def _result(self, reference: Any) -> Any:  # noqa: ANN401 (Ray has no types for these)
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except exceptions.RayTaskError as error:
            raise error.cause from None
        except exceptions.RayError as error:
            reason = str(error).strip().partition("\n")[0]
            raise D2NetError(
                f"a process of the cluster died {_LIVES + 1} times over one part of the work "
                f"({reason}); what is finished is kept, and the same command goes on with it"
            ) from error


def _work(
    work: Callable[[Shared, Part], Result],
    reference: list[Any],
    part: Part,
) -> Result:
    """One part, in a process of the cluster."""
    shared = _fetched(reference[0])
    patience = time.monotonic() + _WAIT_FOR_THE_DEAD
    while True:
        try:
            return work(shared, part)
        except OutputBusyError:
            if time.monotonic() > patience:
                raise
            time.sleep(1)


_kept: dict[str, Any] = {}


def _fetched(reference: Any) -> Any:  # noqa: ANN401 (what all parts share)
    """What the reference stands for; the last one is kept."""
    import ray

    name = reference.hex()
    if name not in _kept:
        _kept.clear()
        _kept[name] = ray.get(reference)
    return _kept[name]
