"""How many requests may be in flight: as many as the network carries, up to the configured most."""

from __future__ import annotations

import asyncio
from collections import deque

_FIRST = 64
_LEAST = 8
_WINDOW = 32  # requests, at least: fewer say nothing about a rate
# Of requests to hosts that have answered before, about 2 % time out on an idle line (stalling servers). More than this
# share means that the line, the resolver or this machine is full.
_CONGESTED = 0.1
_BACK, _ON = 0.7, 1.25


class Throttle:
    """Slots that adapt: a window of requests without congestion adds a quarter, one with it takes a third.

    Congestion is a timeout of a host that has answered before; a host that never did is dead, whatever we do.
    """

    def __init__(self, most: int) -> None:
        self.limit = float(min(most, _FIRST))
        self.in_flight = 0
        self._most = most
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._seen = self._timeouts = 0
        self._full = False

    def note(self, *, congested: bool) -> None:
        """Note how a request ended, and adapt when a window is full."""
        self._seen += 1
        self._timeouts += congested
        if self._seen < max(_WINDOW, self.limit):
            return
        if self._timeouts > _CONGESTED * self._seen:
            self.limit = max(float(min(_LEAST, self._most)), self.limit * _BACK)
        elif self._full:
            self.limit = min(float(self._most), self.limit * _ON)
        self._seen = self._timeouts = 0
        self._full = False
        self._wake()

    async def __aenter__(self) -> None:
        if self.in_flight < int(self.limit) and not self._waiting:
            self.in_flight += 1
            return
        self._full = True
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                await self.__aexit__()
            else:
                self._waiting.remove(turn)
            raise

    async def __aexit__(self, *_: object) -> None:
        self.in_flight -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self.in_flight < int(self.limit):
            self.in_flight += 1
            self._waiting.popleft().set_result(None)
