"""A thread for slow work, with a bounded queue."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

_POLL_SECONDS = 0.2  # between checks whether the client is still connected


class BusyError(Exception):
    """The queue is full."""


class GoneError(Exception):
    """The client has disconnected."""


class Worker:
    """Does one job after the other in its own thread.

    Args:
        name: of the thread.
        max_waiting: jobs that may wait behind the current one.
    """

    def __init__(self, name: str, max_waiting: int) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._free = max_waiting + 1

    async def run(
        self, job: Callable[[], Result], is_gone: Callable[[], Awaitable[bool]]
    ) -> Result:
        """Do the job in the thread as soon as it is free, and return its result.

        Args:
            job: may raise.
            is_gone: whether the client has disconnected. A job that is still waiting is dropped
                then. A running job is finished, because nothing can interrupt the network.

        Raises:
            BusyError: the queue is full.
            GoneError: the client has disconnected.
        """
        if self._free == 0:
            raise BusyError
        self._free -= 1
        future = self._executor.submit(job)
        try:
            waiting = asyncio.wrap_future(future)
            while not (await asyncio.wait([waiting], timeout=_POLL_SECONDS))[0]:
                if await is_gone():
                    future.cancel()
                    raise GoneError
            return waiting.result()
        finally:
            self._free += 1

    def stop(self) -> None:
        """Drop the jobs that wait."""
        self._executor.shutdown(wait=False, cancel_futures=True)
