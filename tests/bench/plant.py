"""A plant's scale, simulated on crops of real photographs: what stays usable, and what grows.

    python -m tests.bench.plant year --nights 365      a class retrained every night on 20 images, with a slow drift
    python -m tests.bench.plant burst --objects 5000   so many objects that land while a training runs
    python -m tests.bench.plant large --images 20000   a class of so many images
    python -m tests.bench.plant classes --count 50     so many classes on two workers with all services of a plant

Each keeps its project and what it has measured below --work, goes on where it was killed, and prints a table of
Markdown. The photographs are the magnetic tiles of $PVQAE_DATASETS; nothing of them leaves --work.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from flows.core import classes
from flows.experiments import subjects
from flows.experiments.page import markdown, processor
from flows.machines import control
from pvqae.core import config, files, runtime
from pvqae.core.config import Services
from pvqae.core.errors import DataError
from pvqae.samples import images
from tests.bench.processes import run
from tests.chaos.growth import megabytes
from tests.chaos.projects import ALIAS_MODULES, FLOW_MODULES, Oven, Project, Server
from tests.clones import PROJECT, clone
from tests.end_to_end import test_pool
from tests.end_to_end.test_services import Project as Plant

DATASET, CATEGORY, MODEL = "plant", "part", "pvqae-plant-part"
STAGES = ("train", "prior", "calibrate", "evaluate")
SIDE = 64  # pixels of a crop
NIGHTLY, FIRST = 20, 120  # images of a night, and of the first training
EACH = 40  # images of each of many classes
LOOKS = (1, 30, 90, 180, 270, 365)  # nights after which every command is timed
DRIFT = 0.06  # of the range, by which crops are brighter after 365 nights
TINY = (
    *(f"data.name={DATASET}", "data.source=folder", f"image.size={SIDE}", "model.width=16", "train.steps=20"),
    *("prior.steps=5", "memory.codes=64", "evaluation.pictures=0", "compute.threads=1", "train.kappa=0.01"),
)
OWN: dict[str, dict[str, Any]] = {
    "landing": {"url": "landing"},
    # One resolution of a crop is hardly another photograph than the next; what is tried here is scale, not screening.
    "retrain": {"min_new": 1, "screen_margin": 99.0, "duplicate": 0.99999},
    "gate": {"latency_ratio": 99.0},
}
PLACES = {
    "photographs": ("data/raw", ".pvqae/runs/plant/data/raw"),
    "registry": (".pvqae/mlflow/mlflow.db",),
    "artifacts": (".pvqae/mlflow/artifacts",),
    "DVC's cache": (".dvc/cache",),
    "DVC's remote": (".pvqae/remote",),
    "git": (".git",),
    "kept features": (".pvqae/cache",),
    "ledger": (".pvqae/arrivals",),
    "all of .pvqae": (".pvqae",),
}


def crops(count: int, step: int = SIDE) -> Iterator[tuple[str, images.Floats]]:
    """Yield `count` crops of good tiles, 64 x 64, `step` pixels apart, by a name that says the photograph.

    Raises `DataError` where there are too few photographs.
    """
    place = next((p for p in subjects.find_places(subjects.dataset_roots()) if p.category == "magnetic_tile"), None)
    if place is None:
        raise DataError("expected the folder mtsd in $PVQAE_DATASETS, found none")
    files = sorted(place.folder.rglob("MT_Free/Imgs/*.jpg"))
    places = []
    for number, file in enumerate(files):
        height, width = images.read(file.name, file.parent).shape[:2]
        cells = [(y, x) for y in range(0, height - SIDE + 1, step) for x in range(0, width - SIDE + 1, step)]
        places += [(number, file, y, x) for y, x in cells]
    random.Random(0).shuffle(places)
    if len(places) < count:
        raise DataError(f"{place.folder}: expected {count} crops of {SIDE} pixels, found {len(places)}")
    for index, (number, file, y, x) in enumerate(places[:count]):
        yield f"tile{number:04}x{index:05}", images.read(file.name, file.parent)[y : y + SIDE, x : x + SIDE]


def project(place: Path, first: int) -> Project:
    """Return the project below `place`: made anew with `first` photographs, or as it was left."""
    whole = place / "made"
    if not whole.exists():
        shutil.rmtree(place, ignore_errors=True)
        root = clone(place).root
        params = yaml.safe_load((root / "params.yaml").read_text("utf-8"))
        for section, own in OWN.items():
            params[section] |= own
        (root / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
        for name, pixels in crops(first):
            images.write(place / "photographs" / CATEGORY / "good" / f"{name}.png", pixels, channels=1)
        whole.touch()
    return Project(place / "project")


@contextmanager
def warm(found: Project) -> Iterator[Project]:
    """Yield the project with a Prefect server of its own and commands that have imported already."""
    home = found.place / "home"
    server = Server(home)
    oven = Oven(found, home, (*FLOW_MODULES, *ALIAS_MODULES), server.api)
    try:
        yield Project(found.root, oven)
    finally:
        oven.close()
        server.close()


def settings(found: Project, *more: str) -> list[str]:
    given = (*TINY, f"data.root={found.place / 'photographs'}", *more)
    return [word for setting in given for word in ("--set", setting)]


def timed(found: Project, *words: str, expect: tuple[int, ...] = (0,)) -> tuple[str, float]:
    """Run a command; return what it printed and seconds of wall."""
    begun = time.monotonic()
    text = found.run(*words, expect=expect, patience=7200)
    return text, time.monotonic() - begun


def sizes(found: Project) -> dict[str, float]:
    """Return megabytes by `PLACES`."""
    return {name: sum(megabytes(found.root / part) for part in parts) for name, parts in PLACES.items()}


def year(place: Path, nights: int) -> str:
    """Retrain every night; return the table."""
    found, kept = project(place, FIRST), place / "nights.jsonl"
    done = [json.loads(line) for line in kept.read_text("utf-8").splitlines()] if kept.exists() else []
    if len(done) < nights:
        every = list(crops(FIRST + NIGHTLY * nights))[FIRST:]
        with warm(found) as ready:
            if not (place / "trained").exists():
                timed(ready, "train", *settings(found))
                (place / "trained").touch()
            for night in range(len(done) + 1, nights + 1):
                facts = _night(ready, night, every[(night - 1) * NIGHTLY : night * NIGHTLY])
                with kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(facts) + "\n")
                print(f"night {night}: {json.dumps(facts)}", file=sys.stderr, flush=True)
                done.append(facts)
    return _told(done)


def _night(found: Project, night: int, arrived: Sequence[tuple[str, images.Floats]]) -> dict[str, Any]:
    found.shore.mkdir(parents=True, exist_ok=True)
    for name, pixels in arrived:
        drifted = np.clip(pixels + DRIFT * night / 365, 0, 1).astype(np.float32)
        images.write(found.place / "beside.png", drifted, channels=1)
        shutil.move(found.place / "beside.png", found.shore / f"{name}.png")
    text, seconds = timed(found, "retrain", "--dataset", DATASET, expect=(0, 1))
    verdict = re.search(rf"{MODEL} version (\d+) against (\d+): (\w+)", text)
    facts: dict[str, Any] = {
        "night": night,
        "seconds": round(seconds, 1),
        "arrived": len(arrived),
        "verdict": verdict.group(3) if verdict else "none",
        "version": int(verdict.group(1)) if verdict else None,
    }
    if night in LOOKS or not verdict:
        facts["said"] = text[-3000:]
    if night in LOOKS:
        facts |= {"sizes": sizes(found), "commands": _looked(found, night), "after gc": sizes(found)}
    return facts


def _looked(found: Project, night: int) -> dict[str, float]:
    """Return seconds of the commands that see all versions; the clean-up comes last."""
    version = str(night)
    commands = {
        "`promote log`": ("promote", "log"),
        "`history`": ("history", DATASET),
        f"`card` of version {version}": ("card", MODEL, version),
        "`verify`": ("verify", MODEL, version),
        "`gc --yes`": ("gc", "--yes", "--keep-days", "0"),
    }
    taken = {}
    for name, words in commands.items():
        text, seconds = timed(found, *words, expect=(0, 1, 2))
        taken[re.sub(r" of version \d+", "", name)] = round(seconds, 1)
        with (found.place / f"look-{night}.txt").open("a", encoding="utf-8") as file:
            file.write(f"== {' '.join(words[:3])}\n{text[-4000:]}\n")
    return taken


def _told(done: Sequence[dict[str, Any]]) -> str:
    """Return the nights that were looked at, as Markdown: seconds of commands, megabytes around the clean-up."""
    looked = [facts for facts in done if "commands" in facts]
    heads = ["", *(f"night {facts['night']}" for facts in looked)]

    def around(night: int) -> float:
        near = [facts["seconds"] for facts in done if abs(facts["night"] - night) <= 5 and facts["night"] > 1]
        return sorted(near)[len(near) // 2] if near else done[0]["seconds"]

    lines = [["a retraining, s (median of 11 nights)", *(f"{around(facts['night']):.1f}" for facts in looked)]]
    lines += [[f"{name}, s", *(f"{f['commands'][name]:.1f}" for f in looked)] for name in looked[0]["commands"]]
    for name in PLACES:
        pairs = (f"{f['sizes'][name]:.1f} → {f['after gc'][name]:.1f}" for f in looked)
        lines.append([f"{name}, MB before → after gc", *pairs])
    verdicts = {facts["verdict"] for facts in done}
    counted = ", ".join(f"{v} {sum(facts['verdict'] == v for facts in done)}" for v in sorted(verdicts))
    return "\n".join(
        [*markdown(heads, lines, text=1), "", f"{len(done)} nights of {NIGHTLY} images; verdicts: {counted}."]
    )


def burst(place: Path, objects: int) -> str:
    """Let so many objects land while a training runs, and retrain until all are in; return the table."""
    shutil.rmtree(place, ignore_errors=True)
    found = project(place, FIRST)
    every = list(crops(FIRST + objects))[FIRST:]
    rows = list[list[str]]()
    with warm(found) as ready:
        timed(ready, "train", *settings(found))
        log = found.place / "training.log"
        with log.open("wb") as out:  # the commands of the warm project share one log
            words = [sys.executable, "-m", "flows", "train", *settings(found, "seed=1", "train.steps=3000")]
            training = subprocess.Popen(words, cwd=found.root, env=found.environ, stdout=out, stderr=out)
            begun = time.monotonic()
            found.shore.mkdir(parents=True)
            for name, pixels in every:
                images.write(found.place / "beside.png", pixels, channels=1)
                shutil.move(found.place / "beside.png", found.shore / f"{name}.png")
            rows.append(["landing, while the training runs", f"{time.monotonic() - begun:.0f} s", ""])
            assert training.poll() is None, "the training should outlive the landing"
            last = -1
            while (states := _states(found)).total() != last and states.total() < objects:
                last = states.total()
                text, seconds = timed(ready, "retrain", "--dataset", DATASET, expect=(0, 1))
                said = [line for line in text.splitlines() if re.match(r"\d+ new objects?: ", line)]
                said += ["beside the training"] if training.poll() is None else []
                rows.append([f"retraining {len(rows)}", f"{seconds:.0f} s", ", ".join(said)])
                print(rows[-1], file=sys.stderr, flush=True)
            assert training.wait(timeout=3600) == 0, log.read_text(errors="replace")[-3000:]
    states = _states(found)
    told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return "\n".join([*markdown(["what", "took", "said"], rows), "", f"Of {objects} objects: {told}."])


def _states(found: Project) -> "Counter[str]":
    """Count what became of every object that was looked at."""
    ledger = found.root / ".pvqae" / "arrivals" / DATASET / "ledger.jsonl"
    lines = ledger.read_text("utf-8").splitlines() if ledger.exists() else []
    return Counter({entry["key"]: entry["state"] for entry in map(json.loads, lines)}.values())


def large(place: Path, count: int) -> str:
    """Take a class of so many images, and of a tenth, through every stage as shipped; return the table."""
    costs = {many: _stages(place / str(many), many) for many in (count // 10, count)}
    few, many = costs.values()
    lines = []
    for name, whole in many.items():
        part = few[name]
        ratio = whole[0] / max(part[0], 0.1)
        lines.append([name, *(f"{s:.0f} s, {cpu:.0f} s, {mb:.0f} MB" for s, cpu, mb in (part, whole)), f"{ratio:.1f}"])
    heads = ["stage: wall, processor, peak", *(f"{n:,} images" for n in costs), "times as long"]
    return "\n".join(markdown(heads, lines, text=1))


def _stages(place: Path, count: int) -> dict[str, tuple[float, float, float]]:
    """Return seconds of wall, of processor and megabytes at the peak of each stage; finished ones are kept."""
    kept, raw = place / "costs.json", place / "data" / "raw" / DATASET / CATEGORY / "good"
    costs = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    settings = (f"data.name={DATASET}", "data.source=folder", f"image.size={2 * SIDE}", "compute.threads=2")
    params = config.load(PROJECT / "params.yaml", settings)
    if not (place / "params.yaml").exists():
        for name, pixels in crops(count, SIDE // 2):
            images.write(raw / f"{name}.png", pixels, channels=1)
        shutil.copyfile(PROJECT / "dvc.yaml", place / "dvc.yaml")
        classes.write(place / "data" / "classes.yaml", classes.classes(params, [CATEGORY]))
        files.write_text(place / "params.yaml", config.dump(params))
    environ = dict(os.environ) | {"PYTHONPATH": str(PROJECT)}
    for words in (("data", "build"), ("data", "check"), *((s, CATEGORY) for s in STAGES), ("report",)):
        name = f"`pvqae {' '.join(words)}`"
        if name not in costs:
            cost = run([sys.executable, "-m", "pvqae.cli.main", *words], place, environ)[1]
            costs[name] = [cost.seconds, cost.cpu, cost.peak_mb]
            files.write_text(kept, json.dumps(costs))
            print(f"{count} images, {name}: {cost}", file=sys.stderr, flush=True)
    return {name: (seconds, cpu, peak) for name, (seconds, cpu, peak) in costs.items()}


def many(place: Path, count: int) -> str:
    """Train so many classes on two workers that share nothing but the services; gate and score them; the table."""
    shutil.rmtree(place, ignore_errors=True)
    plant = Plant(clone(place), control.on_free_ports(Services()))
    every = crops(EACH * count)
    for number in range(count):
        for _, (name, pixels) in zip(range(EACH), every, strict=False):
            images.write(place / "photographs" / f"class{number:03}" / "good" / f"{name}.png", pixels, channels=1)
    rows = list[list[str]]()

    def taken(what: str, *words: str, expect: tuple[int, ...] = (0,)) -> str:
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "flows", *words],
            cwd=plant.root, env=plant.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        rows.append([what, f"{time.monotonic() - begun:.0f} s"])
        print(rows[-1], file=sys.stderr, flush=True)
        (place / f"{len(rows):02}.txt").write_text(done.stdout)
        assert done.returncode in expect, done.stdout[-6000:]
        return done.stdout

    def training(*more: str) -> list[str]:
        given = (*TINY, f"data.root={place / 'photographs'}", "flow.train_pool=pvqae-train", *more)
        return ["train", *(word for setting in given for word in ("--set", setting))]

    try:
        done = plant.up()
        assert done.returncode == 0, done.stdout + done.stderr
        workers = [test_pool.start(plant, name) for name in ("first", "second")]
        said = taken(f"training of {count} classes, two workers", *training())
        assert said.count("1 champion (new)") == count, said[-3000:]
        taken("the same again: nothing to do", *training())
        said = taken("another seed: every class again", *training("seed=1"))
        assert said.count("2 challenger (new)") == count, said[-3000:]
        taken(f"the gate, {count} verdicts", "promote", "run", DATASET, "--reason", "a trial", expect=(0, 1, 3))
        for number in (0, count - 1):
            name = f"class{number:03}"
            model, source = f"pvqae-{DATASET}-{name}@champion", str(place / "photographs" / name / "good")
            taken(f"scoring {EACH} images of {name} by its champion", "score", model, source)
        for what in (
            ("history", DATASET),
            ("promote", "log"),
            ("verify", f"pvqae-{DATASET}-class000", "1"),
            ("doctor",),
        ):
            taken(f"`{' '.join(what)}`", *what, expect=(0, 1))
        taken("`gc --yes`", "gc", "--yes", "--keep-days", "0")
        for worker in workers:
            worker.kill()
    finally:
        control.down(plant.root, plant.settings)
    return "\n".join(markdown(["what", "took"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("year", "burst", "large", "classes"))
    parser.add_argument("--work", type=Path, default=Path(".pvqae/plant"), help="folder of projects and measurements")
    parser.add_argument("--nights", type=int, default=365)
    parser.add_argument("--objects", type=int, default=5000)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--count", type=int, default=50)
    asked = parser.parse_args()
    place = asked.work.resolve() / asked.what
    told = {
        "year": partial(year, place, asked.nights),
        "burst": partial(burst, place, asked.objects),
        "large": partial(large, place, asked.images),
        "classes": partial(many, place, asked.count),
    }
    print(f"{told[asked.what]()}\n\nOn {processor()}, {runtime.cores()} cores.")


if __name__ == "__main__":
    main()
