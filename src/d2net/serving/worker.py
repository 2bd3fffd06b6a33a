"""One thread for what takes long, with a queue that has an end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

_LOOK_EVERY = 0.2  # seconds between looks whether who asked is still there


class BusyError(Exception):
    """As many as may wait are waiting."""


class GoneError(Exception):
    """Who asked has gone."""


class Worker:
    """Does one thing after the other in a thread of its own.

    Args:
        name: of the thread.
        waiting: how many may wait for the one that is being done.
    """

    def __init__(self, name: str, waiting: int) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._room = waiting + 1
        self._lock = threading.Lock()

    async def run(
        self, work: Callable[[], Result], has_gone: Callable[[], Awaitable[bool]]
    ) -> Result:
        """Do the work in the thread, as soon as it is free.

        Args:
            work: may raise.
            has_gone: whether nobody waits for the result any more. Work that has not begun then is
                dropped; begun work is finished, as nothing can interrupt the network.

        Raises:
            BusyError: the queue is full.
            GoneError: nobody waits any more.
        """
        future = self._submit(work)
        waiting = asyncio.wrap_future(future)
        while not (await asyncio.wait([waiting], timeout=_LOOK_EVERY))[0]:
            if await has_gone():
                future.cancel()  # at once; that of asyncio would wait for the loop's next turn
                raise GoneError
        return waiting.result()

    def stop(self) -> None:
        """Drop what waits."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _submit(self, work: Callable[[], Result]) -> Future[Result]:
        with self._lock:
            if self._room == 0:
                raise BusyError
            self._room -= 1
        future = self._executor.submit(work)
        future.add_done_callback(self._make_room)
        return future

    def _make_room(self, _: object) -> None:
        with self._lock:
            self._room += 1
