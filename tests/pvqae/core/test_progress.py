import threading
import time
from types import SimpleNamespace

import nbformat
import pytest
from nbclient import NotebookClient

from pvqae.core import progress
from tests.waiting import until

STOPPED = SimpleNamespace(monotonic=lambda: 0.0)  # a clock: how many seconds a busy machine takes is not judged


def test_every_item_comes_through_in_order_and_the_end_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.track(iter("abc"), "letters", total=5, start=2)) == ["a", "b", "c"]
    found = capsys.readouterr()
    assert found.out == ""
    assert "letters: 5/5" in found.err


def test_the_time_left_is_estimated_from_this_run_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    list(progress.track(range(3), "steps", total=10, start=7))
    assert capsys.readouterr().err.splitlines()[0] == "steps: 8/10, about 40 s left"


def test_work_without_steps_is_not_silent_and_its_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.02)
    monkeypatch.setattr(progress, "time", STOPPED)
    said: list[str] = []
    with progress.working("the graph", said.append):
        until(lambda: len(said) >= 2)
    assert all(line == "the graph: 0 s so far" for line in said[:-1])
    assert said[-1] == "the graph: done in 0 s"


def test_short_work_and_work_that_speaks_itself_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with progress.working("short", said.append):
        pass
    waits: list[float | None] = []

    class Patient(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return super().wait(20)

    monkeypatch.setattr(progress, "threading", SimpleNamespace(Event=Patient, Thread=threading.Thread))
    with progress.working("talking", said.append) as heard:
        for number in range(1, 20):
            until(lambda number=number: len(waits) == number)  # each time it is heard, the quiet begins anew
            heard()
    assert said == []
    assert set(waits) == {progress._QUIET_SECONDS}


def test_work_that_fails_is_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.02)
    said: list[str] = []

    def fail() -> None:
        until(lambda: bool(said))
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), progress.working("the graph", said.append):
        fail()
    assert not any("done" in line for line in said)


def test_a_first_item_that_takes_long_is_told_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.02)
    monkeypatch.setattr(progress, "time", STOPPED)
    heard: list[str] = []
    for _ in progress.track(range(2), "memory", total=2):
        while not heard or not heard[-1]:
            heard.append(capsys.readouterr().err)
            time.sleep(0.01)
    assert heard[-1].startswith("memory: 0/2: 0 s so far")


def test_a_loop_that_is_left_early_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(threading.enumerate())
    loop = progress.track(range(9), "left", total=9)
    next(iter(loop))
    [begun] = set(threading.enumerate()) - before
    del loop
    until(lambda: not begun.is_alive())


def test_a_notebook_shows_a_bar() -> None:
    book = nbformat.v4.new_notebook()
    code = "from pvqae.core.progress import track\nassert list(track(range(3), 'a < b', total=4, start=1)) == [0, 1, 2]"
    book.cells.append(nbformat.v4.new_code_cell(code))
    NotebookClient(book, timeout=300, kernel_name="python3").execute()
    [shown] = book.cells[0].outputs
    assert shown["data"]["text/html"] == 'a &lt; b <progress max="4" value="4"></progress> 4/4'
