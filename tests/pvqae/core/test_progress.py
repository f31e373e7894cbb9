import pytest

from pvqae.core import progress


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
