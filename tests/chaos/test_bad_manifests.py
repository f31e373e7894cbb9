"""Malformed files for every parser: a valid result, or an error of ours that names the file; never anything else.

Seeded mutation of sound files that knows their structure (cells, keys, values, headers), and Hypothesis for the texts
between. Files with right hashes count, too: a hash says that a file is as it was sealed, not by whom.
"""

import io
import json
import random
import shutil
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings, target
from hypothesis import strategies as st

from flows.adapters.landing import Object
from flows.core import shared_files
from flows.retrain.ledger import Entry, Label, LabelLog, Ledger
from pvqae.core import config, files
from pvqae.core.errors import DataError, PvqaeError
from pvqae.datasets import arrivals
from pvqae.drift import profile
from pvqae.inference import bundle
from pvqae.samples import classes, images, manifest
from pvqae.serving import batch_rows
from tests.chaos.figures import Figure, record, size
from tests.chaos.test_bad_images import Hang, limited

SEED = 62
PROJECT = Path(__file__).parents[2]
FORMULA = "=cmd|'/C calc'!A0"
VALUES = (
    "",
    "NaN",
    "-1",
    "1e999",
    "9" * 40,
    "٣",
    "../../etc/passwd",
    "/etc/passwd",
    "a\0b",
    FORMULA,
    "\ud7ff",
    "x" * 70_000,
)
JSON = (None, True, -1, 1e308, 10**400, float("nan"), float("inf"), "", "x", FORMULA, [], {}, [[]], {"a": {}})
LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML = ("!!python/object/apply:os.system ['touch evil']", LAUGHS, MERGES, "[" * 3000, "{a: " * 3000, "9" * 5000)
YAML += (
    "2001-99-99",
    "a: *b",
    "? [x]\n: y",
    "\t",
    "%YAML 9.9\n---\n",
    "--- a\n--- b\n",
    "a: !!binary x",
    "null",
    "[]",
    "1",
)


def bent(rng: random.Random, data: bytes) -> bytes:
    """The same bytes, damaged as disks, editors and other systems damage them."""
    place = rng.randrange(len(data) + 1)
    text = data.decode("utf-8", errors="replace")
    return rng.choice(
        [
            lambda: data[:place],
            lambda: data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :],
            lambda: data[:place] + rng.randbytes(rng.randrange(1, 40)) + data[place:],
            lambda: b"\xef\xbb\xbf" + data,
            lambda: data.replace(b"\n", b"\r\n"),
            lambda: data.replace(b"\n", b"\r"),
            lambda: text.encode("utf-16"),
            lambda: text.encode("latin-1", errors="replace") + b"\xe9",
            lambda: data[:place] + b"\0" + data[place:],
            lambda: data + data,
            lambda: b"",
            lambda: data[:place] + b'"' + data[place:],
        ]
    )()


def table(rng: random.Random, data: bytes) -> bytes:
    """A CSV file with one thing wrong in it."""
    rows = [line.split(",") for line in data.decode().splitlines()]
    row, column = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
    what = rng.randrange(7)
    if what < 3:
        rows[row][column] = rng.choice(VALUES)
    elif what == 3:
        rows[row] = rows[row] * 2
    elif what == 4:
        del rows[row][column:]
    elif what == 5:
        rows.append(list(rows[row]))  # twice the same id, or the header again
    else:
        rows = (
            [[*cells, "more"] for cells in rows[1:]]
            if rng.random() < 0.5
            else [rows[0], *([*r, "more"] for r in rows[1:])]
        )
    return "\n".join(",".join(cells) for cells in rows).encode("utf-8", "surrogatepass") + b"\n"


def places(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """The way to every value in a nest of dicts and lists."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    return [path, *(found for key, item in inner for found in places(item, (*path, key)))]


def nested(rng: random.Random, value: object) -> object:
    """The value with one thing in it replaced, removed or doubled."""
    value = json.loads(json.dumps(value))
    *way, last = rng.choice([path for path in places(value) if path])
    inside = value
    for key in way:
        inside = inside[key]  # type: ignore[index]
    if rng.random() < 0.3 and isinstance(inside, dict):
        kept = inside.pop(last)
        inside |= {} if rng.random() < 0.5 else {f"{last}x": kept}
    else:
        inside[last] = rng.choice(JSON)  # type: ignore[index]
    return value


def as_json(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.1:
        return rng.choice([b"[" * 100_000, b'{"a":' * 50_000, b"NaN", b"null", b"[]", b'"x"', b"1" * 5000])
    return json.dumps(nested(rng, json.loads(data))).encode()


def as_yaml(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.3:
        return rng.choice(YAML).encode()
    return yaml.safe_dump(nested(rng, yaml.safe_load(data))).encode("utf-8", "surrogatepass")


def as_lines(rng: random.Random, data: bytes) -> bytes:
    rows = data.splitlines()
    number = rng.randrange(len(rows))
    rows[number] = as_json(rng, rows[number])
    return b"\n".join(rows) + b"\n"


def as_tensors(rng: random.Random, data: bytes) -> bytes:
    """safetensors: 8 bytes of length, a JSON header, the numbers."""
    length = struct.unpack("<Q", data[:8])[0]
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    if rng.random() < 0.2:
        return struct.pack("<Q", rng.choice([0, 2**63, length + 1, len(data)])) + data[8:]
    text = json.dumps(nested(rng, header)).encode()
    return struct.pack("<Q", len(text)) + text + rest


@dataclass
class Tally:
    tried: int = 0
    lost: list[str] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    def judge(self, name: str, what: str) -> None:
        survived = self.tried - len(self.lost)
        record(Figure(f"parsers-{name}", what, self.tried, survived, len(self.lost), time.monotonic() - self.begun))
        assert self.lost == []
        assert self.tried


def tried(file: Path, parse: Callable[[], object]) -> str:
    """What is wrong with how a parser takes the file, "" if nothing is."""
    try:
        with limited(60):
            parse()
    except PvqaeError as error:
        named = file.name in str(error) or file.parent.name in str(error)
        return "" if named and len(str(error)) < 200_000 else f"not named, or endless: {str(error)[:300]}"
    except (Exception, Hang) as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    return ""


def fuzz(
    file: Path,
    mutate: Callable[[random.Random, bytes], bytes],
    parse: Callable[[], object],
    count: int,
    tally: Tally,
    seal: Path | None = None,
) -> None:
    """Bend `file` `count` times, half of them with knowledge of its structure, and parse each; put it back."""
    data = file.read_bytes()
    assert tried(file, parse) == ""
    for number in range(count):
        rng = random.Random(f"{SEED}/{file.name}/{number}")
        file.write_bytes((mutate if number % 2 else bent)(rng, data))
        if seal:
            bundle.seal(seal)
        tally.tried += 1
        if what := tried(file, parse):
            tally.lost.append(f"{SEED}/{file.name}/{number}: {what}")
    file.write_bytes(data)
    if seal:
        bundle.seal(seal)


def rows(count: int) -> pd.DataFrame:
    numbers = range(count)
    text = {"category": "part", "split": "train", "label": "normal", "kind": "good", "mask_path": "", "source": "mvtec"}
    frame = pd.DataFrame({"sample_id": [f"part/train/good/{n:05}" for n in numbers]})
    frame["path"] = [f"raw/tiny/part/train/good/{n:05}.png" for n in numbers]
    frame["sha256"] = [f"{n:064x}" for n in numbers]
    return frame.assign(
        group_id=frame["sample_id"], **text, width=32, height=24, channels=3, bit_depth=8, captured_at=""
    )[list(manifest.COLUMNS)]


def test_tables(tmp_path: Path) -> None:
    tally, count = Tally(), size(60, 300)
    manifest.write(rows(20), tmp_path / "manifest.csv")
    fuzz(tmp_path / "manifest.csv", table, lambda: check_frame(tmp_path / "manifest.csv"), count, tally)
    signed = dict.fromkeys(arrivals._SIGNED, "x")
    arrivals.sign(tmp_path, [signed | {"path": f"arrived/part/good/{n}.png"} for n in range(9)])
    labels = arrivals._labels_file(tmp_path)
    fuzz(labels, table, lambda: arrivals.signatures(tmp_path), count, tally)
    tally.judge("tables", "malformed manifest.csv or labels.csv: valid rows, or an error that names the file")


def check_frame(file: Path) -> None:
    """What is read is what a manifest is, whatever was in the file."""
    frame = manifest.read(file)
    assert list(frame.columns) == list(manifest.COLUMNS)
    assert not frame.isna().to_numpy().any()
    for path in frame["path"]:  # nothing outside is ever read
        try:
            assert files.resolve(file.parent, path).is_relative_to(file.parent.resolve())
        except DataError:
            continue


def test_settings(tmp_path: Path) -> None:
    tally, count = Tally(), size(60, 300)
    shutil.copyfile(PROJECT / "params.yaml", tmp_path / "params.yaml")
    shutil.copyfile(PROJECT / "data" / "classes.yaml", tmp_path / "classes.yaml")
    name = yaml.safe_load((tmp_path / "classes.yaml").read_text())["dataset"]
    fuzz(tmp_path / "params.yaml", as_yaml, lambda: config.load(tmp_path / "params.yaml"), count, tally)
    fuzz(tmp_path / "classes.yaml", as_yaml, lambda: classes.read(tmp_path / "classes.yaml", name), count, tally)
    tally.judge("settings", "malformed params.yaml or classes.yaml: valid values, or an error that names the file")
    assert not Path("evil").exists()


def test_bundles_under_right_hashes(tiny_bundle: Path, tmp_path: Path) -> None:
    tally, count = Tally(), size(8, 40)
    own = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    mutations = {".json": as_json, ".safetensors": as_tensors}
    for file in sorted(own.iterdir()):
        if file.name == bundle.SUMS:
            continue

        def parse(name: str = file.name) -> None:
            if name == profile.FILE:
                profile.read(bundle.read(own))
            elif name == "calibration.json":
                bundle.threshold(bundle.read(own))
            bundle.load(own)

        fuzz(file, mutations[file.suffix], parse, count, tally, seal=own)
    fuzz(own / bundle.SUMS, bent, lambda: bundle.load(own), count, tally)
    tally.judge("bundles", "malformed file in a bundle, its hashes right: loaded, or an error that names it")


def test_append_only_files(tmp_path: Path) -> None:
    """What a whole line says is kept, whatever is wrong with others."""
    tally, count = Tally(), size(60, 300)
    ledger, labels = tmp_path / "ledger.jsonl", tmp_path / "labels.jsonl"
    Ledger(ledger).append(Entry(f"k{n}", "e", n, "accepted", "", "part", "0" * 64, "a.png", "good") for n in range(6))
    LabelLog(labels).append(*(Label(f"{n}", "good", "me", "2026-01-01T00:00:00Z") for n in range(6)))
    fuzz(ledger, as_lines, lambda: Ledger(ledger).entries("accepted"), count, tally)
    fuzz(labels, as_lines, lambda: (LabelLog(labels).standing(), LabelLog(labels).pending()), count, tally)
    ledger.write_bytes(ledger.read_bytes() + b'{"key": 3}\n[1]\n"x"\n\xff\n{"key": "k9", "et')
    assert len(Ledger(ledger).entries()) == 6
    assert Object("k1", "e", 1) in Ledger(ledger)
    tally.judge("lines", "malformed line of the ledger or of labels: left out, the others kept")


def test_scores_that_were_cut(tmp_path: Path) -> None:
    tally, file = Tally(), tmp_path / "scores.jsonl"
    row = {
        "path": "a.png",
        "error": "",
        "bundle_sha256": "0" * 64,
        "score": 0.5,
        "taken": "",
        "parts": {},
        "statistics": {},
        "level_shares": [],
    }
    file.write_text("".join(json.dumps(row | {"path": f"{n}.png"}) + "\n" for n in range(5)))
    fuzz(file, as_lines, lambda: list(batch_rows.read(tmp_path)), size(30, 120), tally)
    tally.judge("scores", "malformed scores.jsonl: read, or an error that names the file")


def test_one_bad_row_among_ten_thousand_is_named(tmp_path: Path) -> None:
    frame = rows(10_000).astype({"height": str})
    frame.loc[7_654, "height"] = "2x4"
    manifest.write_csv(frame, tmp_path / "manifest.csv")
    with pytest.raises(DataError, match=r"manifest\.csv, column height, row part/train/good/07654"):
        manifest.read(tmp_path / "manifest.csv")


@pytest.mark.parametrize("path", ["../a.png", "/etc/passwd", "raw/../../a.png", "link.png", "a\0b.png", "x" * 5000])
def test_paths_of_a_manifest_lead_nowhere_else(tmp_path: Path, path: str) -> None:
    (tmp_path / "data").mkdir()
    images.write(tmp_path / "a.png", np.zeros((8, 8, 3), dtype=np.float32))
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(DataError):
        images.read(path, tmp_path / "data")


@settings(max_examples=size(60, 500), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=300), st.sampled_from(["params", "classes", "manifest"]))
def test_any_text_is_a_value_or_an_error_of_ours(tmp_path: Path, text: str, kind: str) -> None:
    """Longer messages, closer to an accepted file: Hypothesis climbs towards what parses furthest."""
    file = tmp_path / f"{kind}.txt"
    file.write_text(text, "utf-8", errors="surrogatepass")
    parse = {"params": config.load, "classes": lambda path: classes.read(path, "x"), "manifest": manifest.read}[kind]
    target(float(text.count(":") + text.count(",") + text.count("\n")))
    assert tried(file, lambda: parse(file)) == ""


def test_lines_survive_whatever_is_between_them(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    shared_files.append(file, [{"a": 1}])
    file.write_bytes(file.read_bytes() + b"[" * 100_000 + b"\n" + b"\0" * 100 + b"\n")
    shared_files.append(file, [{"a": 2}])
    assert list(shared_files.records(file, dict)) == [{"a": 1}, {"a": 2}]
    assert io.BytesIO(file.read_bytes()).readline() == b'{"a": 1}\n'
