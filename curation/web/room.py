"""Back-pressure: bodies that are read, or wait for a decoder, share a fixed room in memory."""

from __future__ import annotations

import asyncio
from collections import deque

FIRST_SHARE = 32 << 10  # bytes of memory that a request takes before its body's length is known


class Room:
    """So many bytes for everything in flight; used within one event loop.

    A request takes a first share before it starts and asks for more as its body needs it; one that gets none waits,
    its body stops flowing. Bodies that each hold a part and wait for the rest could wait for each other for ever: so
    `lane` bytes are set aside in which one of them at a time may always go on to its end.
    """

    def __init__(self, limit: int, lane: int) -> None:
        self._limit = limit - lane
        self._lane_bytes = lane
        self._lane: Share | None = None
        self._growing: deque[tuple[int, Share, asyncio.Future[None]]] = deque()  # before those: they hold room already
        self._taking: deque[tuple[int, Share, asyncio.Future[None]]] = deque()
        self.used = 0  # outside the lane

    async def take(self, n_bytes: int) -> Share:
        """Wait until there is room for a share of this size."""
        share = Share(self)
        if not self._growing and not self._taking and self._fits(n_bytes):
            self._give(share, n_bytes)
        else:
            await self._queue(self._taking, n_bytes, share)
        return share

    async def grow(self, share: Share, n_bytes: int) -> None:
        """Wait until the share can have so many bytes more."""
        if self.has(share, n_bytes):
            self._give(share, n_bytes)
        else:
            await self._queue(self._growing, n_bytes, share)

    def has(self, share: Share, n_bytes: int) -> bool:
        """Whether the share could have so many bytes more without waiting."""
        return share is self._lane or (not self._growing and self._fits(n_bytes))

    def free(self, share: Share, n_bytes: int) -> None:
        """Take bytes back from a share, those in the lane first; without any left it leaves the lane."""
        in_lane = min(n_bytes, share.in_lane)
        share.in_lane -= in_lane
        share.n_bytes -= n_bytes
        self.used -= n_bytes - in_lane
        if share is self._lane and not share.in_lane:
            self._lane = None
        self._wake()

    def _fits(self, n_bytes: int) -> bool:
        return self.used + n_bytes <= self._limit

    def _give(self, share: Share, n_bytes: int) -> None:
        share.n_bytes += n_bytes
        if share is self._lane:
            share.in_lane += n_bytes
        else:
            self.used += n_bytes

    async def _queue(self, queue: deque[tuple[int, Share, asyncio.Future[None]]], n_bytes: int, share: Share) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (n_bytes, share, turn)
        queue.append(place)
        self._wake()
        try:
            await turn
        except asyncio.CancelledError:
            if place in queue:
                queue.remove(place)
                self._wake()
            elif queue is self._taking:
                share.release()  # the turn had come, but nobody is there to use it
            raise

    def _wake(self) -> None:
        while self._growing:
            n_bytes, share, turn = self._growing[0]
            if not self._fits(n_bytes):
                if self._lane is not None or n_bytes > self._lane_bytes:
                    return
                self._lane = share
            self._growing.popleft()
            self._give(share, n_bytes)
            turn.set_result(None)
        while self._taking and self._fits(self._taking[0][0]):
            n_bytes, share, turn = self._taking.popleft()
            self._give(share, n_bytes)
            turn.set_result(None)


class Share:
    """What one body takes of a room."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.n_bytes = 0
        self.in_lane = 0

    async def reach(self, n_bytes: int) -> None:
        """Wait until the share is at least of this size."""
        if n_bytes > self.n_bytes:
            await self._room.grow(self, n_bytes - self.n_bytes)

    def can_reach(self, n_bytes: int) -> bool:
        """Whether reach would return at once."""
        return n_bytes <= self.n_bytes or self._room.has(self, n_bytes - self.n_bytes)

    def shrink(self, n_bytes: int) -> None:
        """Give back what is above this size."""
        if n_bytes < self.n_bytes:
            self._room.free(self, self.n_bytes - n_bytes)

    def release(self) -> None:
        """Give the room back; a second time does nothing."""
        self.shrink(0)
