"""How much one client, and all together, may ask for. All of it runs on the event loop, so nothing is locked."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pvqae.serving.refusal import Refused

CLIENTS = 10_000  # whose last requests are remembered, about 2 MB


class Rate:
    """A bucket of `burst` tokens per client that fills by `rate` a second. `rate` 0: no limit."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client → tokens, when

    def take(self, client: str) -> None:
        """Raises `Refused` (429) when the client's bucket is empty."""
        if not self._rate:
            return
        now = self._clock()
        tokens, before = self._buckets.pop(client, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - before) * self._rate)
        self._buckets[client] = (max(0.0, tokens - 1) if tokens >= 1 else tokens, now)
        if len(self._buckets) > CLIENTS:
            self._buckets.popitem(last=False)
        if tokens < 1:
            raise Refused(
                429,
                "rate",
                f"expected at most {self._rate:g} requests per second (at once {self._burst}) from one client, found "
                "more; wait, or send several images per request to /v1/score/batch",
                (1 - tokens) / self._rate,
            )


class Places:
    """At most `size` requests at once in a part of the service; the next one is refused, not kept waiting."""

    def __init__(self, size: int, what: str) -> None:
        self._size, self._what, self.taken = size, what, 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Raises `Refused` (503) when all are taken."""
        if self.taken >= self._size:
            text = f"expected at most {self._size} requests {self._what} at once, found all places taken; try again"
            raise Refused(503, "busy", text, 1)
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1
