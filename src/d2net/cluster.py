"""Work on many machines with Ray (https://docs.ray.io).

Ray starts a process for each core, sends it the data that all parts of the work share, and then
the parts. Results come back to this process, which alone writes the output. When a process or a
machine dies, another process begins its part again.

All machines must see the same files under the same paths and have d2net installed. Ray is imported
only when a cluster is used.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from d2net.errors import D2NetError, InputError, needs_package

Item = TypeVar("Item")
Shared = TypeVar("Shared")
Result = TypeVar("Result")

_MAX_RETRIES = 10  # of a batch whose process died; the batch itself may have killed it


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

    A connection of this process to a cluster is used if there is one, and left open. Otherwise
    `address` is "auto" for the cluster of this machine, or host:port of its head. `work` is a
    function of a module, which may be called again for a batch that it has begun. `shared` is sent
    once to each process. `gpu` starts a process for each GPU instead of each core. InputError if
    there is no cluster; D2NetError if `work` raises one, or its process dies again and again.
    """
    with needs_package("a cluster needs the package ray", "cluster"):
        ray: Any = importlib.import_module("ray")

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
    running: set[Any] = set()
    try:
        options = {"num_cpus": 1, "num_gpus": int(gpu), "scheduling_strategy": "SPREAD"}
        remote = ray.remote(_work).options(max_retries=_MAX_RETRIES, **options)
        reference = ray.put(shared)
        waiting = deque(items[i : i + batch] for i in range(0, len(items), batch))
        while waiting or running:
            processes = ray.cluster_resources().get("GPU" if gpu else "CPU", 1)
            while waiting and len(running) < 2 * processes:
                # Ray resolves a bare reference for each call. In a list it stays a reference,
                # and each process fetches the object once.
                running.add(remote.remote(work, [reference], list(waiting.popleft())))
            (ready, *_), _ = ray.wait(list(running))
            running.remove(ready)
            yield from ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        reason = str(error).strip().partition("\n")[0]
        raise D2NetError(
            f"workers died {_MAX_RETRIES + 1} times on one part ({reason}); finished parts are "
            "kept: run the same command again"
        ) from error
    finally:
        for part in running:
            ray.cancel(part, force=True)
        if ours:
            ray.shutdown()


def _work(
    work: Callable[[Shared, list[Item]], list[Result]], reference: list[Any], items: list[Item]
) -> list[Result]:
    """Work on one batch, in a process of the cluster."""
    return work(_fetch(reference[0]), items)


@functools.lru_cache(maxsize=1)
def _fetch(reference: Any) -> Any:  # noqa: ANN401 (Ray has no types for these)
    """The object that all batches share. A process keeps the last one."""
    import ray

    return ray.get(reference)
