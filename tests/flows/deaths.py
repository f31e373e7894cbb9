"""Die at a line: what a killed process leaves, without a process per line."""

import sys
from collections import Counter
from collections.abc import Callable, Collection
from types import FrameType

Spot = tuple[str, int, int]  # file, line, how often it was reached before


class Killed(BaseException):
    """As SIGKILL as a test can be: nothing that catches `Exception` sees it."""


def traced(work: Callable[[], object], watched: Collection[str], at: Spot | None) -> Counter[tuple[str, int]]:
    """Run `work`, and die just before `at`; return how often each line of the files `watched` was reached."""
    seen: Counter[tuple[str, int]] = Counter()

    def local(frame: FrameType, event: str, _: object) -> Callable[..., object]:
        if event == "line":
            place = (frame.f_code.co_filename, frame.f_lineno)
            if at == (*place, seen[place]):
                raise Killed
            seen[place] += 1
        return local

    before = sys.gettrace()
    sys.settrace(lambda frame, event, _: local if frame.f_code.co_filename in watched else None)
    try:
        work()
    except Killed:
        pass
    finally:
        sys.settrace(before)
    return seen
