"""Fuzzing guided by coverage (atheris, which is libFuzzer): inputs that reach new lines of the project are bent on.

`python -m tests.chaos.guided TARGET RUNS SECONDS FOLDER`, ended by whichever comes first; libFuzzer prints its progress
and, for an input that breaks the promise, the error with that input. The promise: a valid value, or an error of ours
that names the file.
"""

import json
import logging
import os
import resource
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pvqae", "flows", "yaml"]):
    import numpy as np
    import yaml
    from PIL import Image

    from flows.retrain.ledger import Entry, Label, LabelLog, Ledger
    from pvqae.core import config
    from pvqae.datasets import arrivals
    from pvqae.drift import profile
    from pvqae.inference import bundle
    from pvqae.samples import classes, images, manifest
    from pvqae.serving import batch_rows
    from tests.chaos.conftest import make
    from tests.chaos.test_bad_manifests import PROJECT, check_frame, rows, tried

SEED = 62
_MEGABYTES = 2048  # that the inputs may add, libFuzzer's own limit


@dataclass(frozen=True)
class Target:
    """`file` is what is bent; `parse` reads it; `seal`: a bundle whose hashes are made right again."""

    file: Path
    parse: Callable[[], object]
    seal: Path | None = None


def of_manifest(place: Path) -> Target:
    file = place / "manifest.csv"
    manifest.write(rows(3), file)
    return Target(file, lambda: check_frame(file))


def of_labels(place: Path) -> Target:
    signed = dict.fromkeys(arrivals._SIGNED, "x")
    arrivals.sign(place, [signed | {"path": f"arrived/part/good/{n}.png"} for n in range(3)])
    return Target(arrivals._labels_file(place), lambda: arrivals.signatures(place))


def of_params(place: Path) -> Target:
    file = Path(shutil.copy(PROJECT / "params.yaml", place))
    return Target(file, lambda: config.load(file))


def of_classes(place: Path) -> Target:
    file = Path(shutil.copy(PROJECT / "data" / "classes.yaml", place))
    name = yaml.safe_load(file.read_text())["dataset"]
    return Target(file, lambda: classes.read(file, name))


def of_ledger(place: Path) -> Target:
    file = place / "ledger.jsonl"
    Ledger(file).append(Entry(f"k{n}", "e", n, "accepted", "", "part", "0" * 64, "a.png", "good") for n in range(3))
    return Target(file, lambda: Ledger(file).entries("accepted"))


def of_reviews(place: Path) -> Target:
    file = place / "labels.jsonl"
    LabelLog(file).append(*(Label(f"{n}", "good", "me", "2026-01-01T00:00:00Z") for n in range(3)))
    return Target(file, lambda: (LabelLog(file).standing(), LabelLog(file).pending()))


def of_scores(place: Path) -> Target:
    file = place / "scores.jsonl"
    row = {"path": "a.png", "error": "", "bundle_sha256": "0" * 64, "score": 0.5, "taken": ""}
    file.write_text(json.dumps(row | {"parts": {}, "statistics": {}, "level_shares": []}) + "\n")
    return Target(file, lambda: list(batch_rows.read(place)))


def of_image(place: Path) -> Target:
    file = place / "image.png"
    images.write(file, np.random.default_rng(0).random((9, 8, 3), dtype=np.float32))
    return Target(file, lambda: images.read(file))


def of_tiff(place: Path) -> Target:
    file = place / "image.tif"
    Image.fromarray(np.random.default_rng(0).integers(0, 65536, (9, 8), dtype=np.uint16)).save(file)
    return Target(file, lambda: (images.read(file), images.read_mask(file)))


def of_calibration(place: Path) -> Target:
    own = make(place / "bundle", place / "normals")
    return Target(own / "calibration.json", lambda: bundle.threshold(bundle.read(own)), seal=own)


def of_profile(place: Path) -> Target:
    own = make(place / "bundle", place / "normals")
    return Target(own / profile.FILE, lambda: profile.read(bundle.read(own)), seal=own)


TARGETS: dict[str, Callable[[Path], Target]] = {
    name.removeprefix("of_"): found for name, found in list(globals().items()) if name.startswith("of_")
}


def main(name: str, runs: str, seconds: str, place: str) -> None:
    """`place` is an empty folder; whoever made it removes it, since the fuzzer ends the process."""
    warnings.simplefilter("ignore")
    logging.disable()
    os.chdir(place)
    found, corpus = TARGETS[name](Path.cwd()), Path.cwd() / "corpus"
    corpus.mkdir()
    shutil.copyfile(found.file, corpus / "sound")

    def one(data: bytes) -> None:
        found.file.write_bytes(data)
        if found.seal:
            bundle.seal(found.seal)
        if wrong := tried(found.file, found.parse):
            raise AssertionError(f"{found.file.name}: {wrong}: {data!r}")

    options = [f"-runs={runs}", f"-max_total_time={seconds}", f"-seed={SEED}", "-max_len=4096", "-timeout=60"]
    # The peak of this process begins at that of the one that started it, which may have run a whole suite.
    limit = _MEGABYTES + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    options.append(f"-rss_limit_mb={limit}")
    atheris.Setup([sys.argv[0], *options, "-print_final_stats=1", str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
