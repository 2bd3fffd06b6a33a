"""Work on many machines with Ray (https://docs.ray.io).

Ray starts a process for each core, sends it the data that all parts of the work share, and then
the parts. Results come back to this process, which alone writes the output. When a process or a
machine dies, another process begins its part again.

All machines must see the same files under the same paths and have d2net installed. Ray is imported
only when a cluster is used.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from d2net.errors import D2NetError, InputError, MissingPackageError

Item = TypeVar("Item")
Shared = TypeVar("Shared")
Part = TypeVar("Part")
Result = TypeVar("Result")

_MAX_RETRIES = 10
"""How often a part is begun again after its process died. The part itself may be what kills it."""


def share(
    address: str,
    work: Callable[[Shared, list[Item]], list[Result]],
    shared: Shared,
    items: Sequence[Item],
    *,
    batch: int,
    gpu: bool,
) -> Iterator[Result]:
    """Yield the results of `work(shared, some_items)` for batches of items, as they are finished.

    Args:
        address: as for `connected`.
        work: a function of a module. It may be called again for a batch that it has begun.
        shared: sent once to each process.
        items: small objects.
        batch: items per call.
        gpu: start a process for each GPU instead of each core.

    Raises:
        MissingPackageError: Ray is not installed.
        InputError: there is no cluster.
        D2NetError: an error of `work`, or its process died again and again.
    """
    batches = (list(items[i : i + batch]) for i in range(0, len(items), batch))
    with connected(address, gpu=gpu) as cluster:
        for results in cluster.run(work, shared, batches):
            yield from results


@contextmanager
def connected(address: str, *, gpu: bool = False) -> Iterator[Cluster]:
    """Connect to a cluster. An existing connection of this process is used and left open.

    Args:
        address: "auto" for the cluster of this machine, or host:port of its head.
        gpu: start a process for each GPU instead of each core.

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
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
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
    """The cluster that this process is connected to, see `connected`."""

    _ray: Any
    _gpu: bool

    @property
    def count(self) -> int:
        """Number of processes that can work at the same time."""
        return max(1, int(self._ray.cluster_resources().get("GPU" if self._gpu else "CPU", 0)))

    def run(
        self, work: Callable[[Shared, Part], Result], shared: Shared, parts: Iterable[Part]
    ) -> Iterator[Result]:
        """Yield `work(shared, part)` for every part, in the order in which they are finished.

        Args:
            work: a function of a module. It may be called again for a part that it has begun.
            shared: sent once to each process, which keeps it.
            parts: small objects; long parts should come first.

        Raises:
            D2NetError: an error of `work`, or its process died again and again.
        """
        ray = self._ray
        options = {"num_cpus": 1, "num_gpus": int(self._gpu), "scheduling_strategy": "SPREAD"}
        remote = ray.remote(_work).options(max_retries=_MAX_RETRIES, **options)
        reference = ray.put(shared)
        waiting = deque(parts)
        running: set[Any] = set()
        try:
            while waiting or running:
                while waiting and len(running) < 2 * self.count:
                    # Ray resolves a bare reference for each call. In a list it stays a reference,
                    # and each process fetches the object once.
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
                f"the process of one part of the work died {_MAX_RETRIES + 1} times ({reason}); "
                "finished parts are kept, and the same command continues from there"
            ) from error


def _work(work: Callable[[Shared, Part], Result], reference: list[Any], part: Part) -> Result:
    """Work on one part, in a process of the cluster."""
    return work(_fetch(reference[0]), part)


_fetched: dict[str, Any] = {}


def _fetch(reference: Any) -> Any:  # noqa: ANN401 (the type of `shared`)
    """The object that all parts share. A process keeps the last one."""
    import ray

    name = reference.hex()
    if name not in _fetched:
        _fetched.clear()
        _fetched[name] = ray.get(reference)
    return _fetched[name]
