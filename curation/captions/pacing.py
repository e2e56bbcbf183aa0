"""How fast and how far an endpoint may be asked: requests and tokens a minute, pauses, money and tokens in all."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MAX_PAUSE_S = 600.0  # an endpoint that asks for more is out of order: the attempts run out


class Pace:
    """Requests and tokens within any sliding minute, and a pause that all threads share.

    requests, tokens   most within 60 s; None: no limit. Tokens are reserved by estimate before a request
    """

    def __init__(
        self, requests: int | None, tokens: int | None, *,
        clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self._requests, self._tokens = requests, tokens
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._taken: deque[tuple[float, int]] = deque()
        self._tokens_taken = 0
        self._paused_until = 0.0

    def wait(self, tokens: int) -> None:
        """Return when a request of so many tokens may be sent; one above the limit goes alone."""
        while (delay := self._take(tokens)) > 0:
            self._sleep(delay)

    def pause(self, seconds: float) -> None:
        """Let no thread send for so long."""
        with self._lock:
            self._paused_until = max(self._paused_until, self._clock() + min(seconds, MAX_PAUSE_S))

    def _take(self, tokens: int) -> float:
        with self._lock:
            now = self._clock()
            if now < self._paused_until:
                return self._paused_until - now
            while self._taken and self._taken[0][0] <= now - 60:
                self._tokens_taken -= self._taken.popleft()[1]
            full = self._requests is not None and len(self._taken) >= self._requests
            dear = self._tokens is not None and self._tokens_taken + tokens > self._tokens
            if self._taken and (full or dear):
                return self._taken[0][0] + 60 - now
            self._taken.append((now, tokens))
            self._tokens_taken += tokens
            return 0.0


class Budget:
    """Money and tokens that a job may use, what is under way included: the cap is never passed.

    money    in the currency of the prices; None: no cap       tokens   prompt and completion; None: no cap
    """

    def __init__(self, money: float | None, tokens: int | None) -> None:
        self._money, self._tokens = money, tokens
        self._lock = threading.Lock()
        self.spent_money, self.spent_tokens = 0.0, 0
        self._held_money, self._held_tokens = 0.0, 0

    def reserve(self, money: float, tokens: int) -> bool:
        """Hold what a request may cost at most; False where that would pass a cap."""
        with self._lock:
            if self._money is not None and self.spent_money + self._held_money + money > self._money:
                return False
            if self._tokens is not None and self.spent_tokens + self._held_tokens + tokens > self._tokens:
                return False
            self._held_money += money
            self._held_tokens += tokens
            return True

    def settle(self, reserved: tuple[float, int], used: tuple[float, int]) -> None:
        """Release a reservation and count what the request cost: (money, tokens) each."""
        with self._lock:
            self._held_money -= reserved[0]
            self._held_tokens -= reserved[1]
            self.spent_money += used[0]
            self.spent_tokens += used[1]


def backoff_s(attempt: int, *, base: float = 1.0, most: float = 60.0) -> float:
    """Seconds to wait after failed attempt number `attempt` (from 0): full jitter under an exponential bound."""
    return random.uniform(0, min(most, base * 2.0**attempt))


def retry_after_s(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for (delta or HTTP date), None where it says nothing of use."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), MAX_PAUSE_S) if seconds == seconds else None
