"""Back-pressure: bodies that are read, or wait for a decoder, share a fixed room in memory."""

from __future__ import annotations

import asyncio
from collections import deque

FIRST_SHARE = 256 << 10  # bytes of memory that a request takes before its body's length is known


class Room:
    """So many bytes for everything in flight; used within one event loop.

    A request takes a first share before it starts and asks for the rest when the length of its body is known. As long
    as the room holds all first shares and one whole body beside them, somebody can always go on.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.used = 0

    async def take(self, n_bytes: int) -> Share:
        """Wait until there is room for a share of this size."""
        await self._wait(n_bytes)
        return Share(self, n_bytes)

    async def _wait(self, n_bytes: int) -> None:
        if not self._waiting and self._fits(n_bytes):
            self.used += n_bytes
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (n_bytes, turn)
        self._waiting.append(place)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give(n_bytes)  # the turn had come, but nobody is there to use it
            else:
                self._waiting.remove(place)
                self._give(0)
            raise

    def _fits(self, n_bytes: int) -> bool:
        return self.used + n_bytes <= self._limit or self.used == 0

    def _give(self, n_bytes: int) -> None:
        self.used -= n_bytes
        while self._waiting and self._fits(self._waiting[0][0]):
            wanted, turn = self._waiting.popleft()
            self.used += wanted
            turn.set_result(None)


class Share:
    """What one body takes of a room."""

    def __init__(self, room: Room, n_bytes: int) -> None:
        self._room = room
        self.n_bytes = n_bytes

    async def grow(self, n_bytes: int) -> None:
        """Wait until the share can be of this size; never shrinks it."""
        if n_bytes > self.n_bytes:
            await self._room._wait(n_bytes - self.n_bytes)
            self.n_bytes = n_bytes

    def exceed(self, n_bytes: int) -> None:
        """Count a body of unannounced length: it does not wait, which could be for itself, but those to come do."""
        self._room.used += max(0, n_bytes - self.n_bytes)
        self.n_bytes = max(n_bytes, self.n_bytes)

    def release(self) -> None:
        """Give the room back; a second time does nothing."""
        n_bytes, self.n_bytes = self.n_bytes, 0
        self._room._give(n_bytes)
