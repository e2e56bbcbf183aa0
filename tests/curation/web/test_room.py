import asyncio
import random

import pytest

from curation.web.room import Room


def test_the_limit_holds_whoever_comes_and_goes() -> None:
    connections = asyncio.Semaphore(15)  # 15 first shares and one whole body fit

    async def body(room: Room, size: int, order: random.Random) -> int:
        async with connections:
            share = await room.take(10)
            try:
                await asyncio.sleep(order.random() / 1000)
                await share.grow(size)
                peak = room.used
                await asyncio.sleep(order.random() / 1000)
            finally:
                share.release()
                share.release()
            return peak

    async def scenario() -> None:
        room, order = Room(300), random.Random(7)
        tasks = [asyncio.create_task(body(room, order.randrange(150), order)) for _ in range(300)]
        await asyncio.sleep(0.003)
        for task in order.sample(tasks, 60):
            task.cancel()
        done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
        peaks = [peak for peak in done if isinstance(peak, int)]
        assert len(peaks) >= 240
        assert max(peaks) <= 300
        assert room.used == 0

    asyncio.run(scenario())


def test_a_body_larger_than_the_room_goes_alone() -> None:
    async def scenario() -> None:
        room = Room(10)
        large = await room.take(50)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(room.take(1), 0.01)
        large.release()
        (await room.take(1)).release()

    asyncio.run(scenario())


def test_bodies_of_unknown_length_hold_back_those_to_come() -> None:
    async def scenario() -> None:
        room = Room(100)
        share = await room.take(10)
        share.exceed(95)
        share.exceed(20)
        assert (room.used, share.n_bytes) == (95, 95)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(room.take(10), 0.01)

    asyncio.run(scenario())
