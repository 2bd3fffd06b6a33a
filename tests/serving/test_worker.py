"""One thread, a queue with an end, and people who leave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from starlette.exceptions import HTTPException

from d2net.serving.app import Worker


async def stays() -> bool:
    return False


async def leaves() -> bool:
    return True


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("test", max_waiting=1)
    yield worker
    worker.stop()


def test_the_result_and_the_error_come_back(worker: Worker) -> None:
    assert asyncio.run(worker.run(lambda: 3, stays)) == 3
    with pytest.raises(ZeroDivisionError):
        asyncio.run(worker.run(lambda: 1 // 0, stays))


def test_one_thing_at_a_time_and_a_full_queue_refuses(worker: Worker) -> None:
    go, done = threading.Event(), []

    def wait() -> None:
        assert go.wait(20)
        done.append(threading.get_ident())

    async def three() -> None:
        two = [asyncio.create_task(worker.run(wait, stays)) for _ in range(2)]
        await asyncio.sleep(0.05)
        with pytest.raises(HTTPException, match="503"):
            await worker.run(wait, stays)
        go.set()
        await asyncio.gather(*two)
        await worker.run(wait, stays)  # there is room again

    asyncio.run(three())
    assert len(done) == 3
    assert len(set(done)) == 1


def test_what_nobody_waits_for_is_not_begun(worker: Worker) -> None:
    go, done = threading.Event(), []

    async def two() -> None:
        first = asyncio.create_task(worker.run(lambda: go.wait(20), stays))
        await asyncio.sleep(0.05)
        with pytest.raises(HTTPException, match="499"):
            await worker.run(lambda: done.append(1), leaves)
        go.set()
        await first
        assert await worker.run(lambda: 5, stays) == 5

    asyncio.run(two())
    assert done == []
