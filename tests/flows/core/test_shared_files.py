"""Append-only files: what is whole is kept, what is not is told of by its line, once."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.core import shared_files


@dataclass(frozen=True)
class Kind:
    n: int


def test_a_damaged_line_is_left_out_and_named_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(b'{"n": 1}\n[2]\n\xff\n{"n": "x"}\n{"n": 5, "more": 6}\n{"n": 7')
    assert list(shared_files.records(file, Kind)) == [Kind(1), Kind(5)]
    said = capfd.readouterr().err.splitlines()
    assert [line.partition(": ")[0] for line in said] == [f"{file}, line {number}" for number in (2, 3, 4)]
    assert "no Kind: " in said[2]
    assert list(shared_files.records(file, Kind)) == [Kind(1), Kind(5)]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("last", "kept"),
    [
        (b"{", b""),
        (b'{"n": 2', b""),
        (b'{"n": 2, "text": "a}', b""),
        (b'{"n": 2}', b'{"n": 2}\n'),  # an editor leaves out the end of a file
        (b">>>>>>> lot-47", b">>>>>>> lot-47\n"),
        (b"remark", b"remark\n"),
    ],
)
def test_only_the_beginning_of_an_object_is_cut_off(tmp_path: Path, last: bytes, kept: bytes) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(b'{"n": 1}\n' + last)
    shared_files.append(file, [{"n": 3}])
    assert file.read_bytes() == b'{"n": 1}\n' + kept + b'{"n": 3}\n'
