import hashlib
from pathlib import Path

import pandas as pd
import pytest

from pvqae.core import files
from pvqae.core.errors import DataError
from pvqae.samples import manifest


def rows() -> pd.DataFrame:
    base = dict.fromkeys(manifest.COLUMNS, "x") | dict.fromkeys(manifest.NUMBERS, 8) | {"mask_path": ""}
    return pd.DataFrame([base | {"sample_id": name} for name in ("b/Ä", "a,1", "01")], columns=list(manifest.COLUMNS))


def test_rows_come_back_sorted_and_equal(tmp_path: Path) -> None:
    path = tmp_path / "data" / "manifest.csv"
    manifest.write(rows(), path)
    again = manifest.read(path)
    assert list(again.sample_id) == ["01", "a,1", "b/Ä"]
    assert (again.mask_path == "").all()
    assert (again[list(manifest.NUMBERS)].dtypes == "int64").all()
    before = path.read_bytes()
    manifest.write(again.iloc[::-1], path)
    assert path.read_bytes() == before
    assert b"\r" not in before
    assert [p.name for p in path.parent.iterdir()] == ["manifest.csv"]


def test_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert files.digest(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, "no file"),
        ("", "No columns"),
        ("sample_id,path\na,b\n", "found sample_id, path"),
        (",".join(manifest.COLUMNS) + "\n" + ",".join(["x"] * 15) + "\n", "column width, row x"),
    ],
)
def test_a_wrong_manifest_is_named_with_its_repair(tmp_path: Path, text: str | None, found: str) -> None:
    path = tmp_path / "manifest.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=rf"(?s)manifest\.csv.*{found}.*dvc repro"):
        manifest.read(path)


def test_columns_are_checked_before_writing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected the columns"):
        manifest.write(rows().drop(columns="kind"), tmp_path / "manifest.csv")
    assert not (tmp_path / "manifest.csv").exists()


def test_paths_stay_inside_their_root(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    assert files.resolve(root, "raw/a b.png") == root / "raw" / "a b.png"
    for path in ("/etc/passwd", "../x", "raw/../../x", "out/x"):
        with pytest.raises(DataError, match="inside"):
            files.resolve(root, path)
