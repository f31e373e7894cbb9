"""This build beside an older one: each in an environment and a project of its own, one after the other in turns.

The older build is installed once, with the versions that its own `constraints.txt` names, below `.pvqae/against`. Both
run the commands that users run; processor time is that of a command and of all that it starts, to about a tenth of a
second each.
"""

import contextlib
import ctypes
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from flows.experiments import subjects
from pvqae.samples import images
from tests.bench.processes import Cost, run
from tests.bench.rows import Row, Size, at_least, at_most

PROJECT = Path(__file__).parents[2]
OLDER = "f5f3d48"  # the last commit before the engine, the joint memories and the batches of the service
PLACE = PROJECT / ".pvqae" / "against"
TURNS = 5
CLASS = "bottle"
_PAUSE = 0.1  # seconds between looks at what runs
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of <sys/prctl.h>
GIT = ("git", "-c", "user.name=bench", "-c", "user.email=bench@example.org")
# Modules that have moved between the builds.
IMPORTS = """
import json, sys, time
from pathlib import Path
import numpy as np
import torch
from pvqae.inference import bundle
try:
    from pvqae.samples import images
    from pvqae.serving import load_test
    from pvqae.core import config
except ImportError:
    from pvqae.datasets import images
    from pvqae.serving import bench as load_test
    from pvqae import config
"""
# Seconds of processor time and of wall for a file, read and scored to decision and map as users of the library do it.
SCORE = """
folder, threads, *files = sys.argv[1:]
torch.set_num_threads(int(threads))
detector = bundle.load(Path(folder))
def each():
    for scored in detector.score_many((path, Path(path)) for path in files):
        assert scored.image_score > 0 and scored.anomaly_map.size
each()
wall, cpu = time.perf_counter(), time.process_time()
each()
cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
print(json.dumps([cpu / len(files), wall / len(files)]))
"""
LARGE = """
import sys
import numpy as np
from PIL import Image
height, width = map(int, sys.argv[2:])
values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
Image.fromarray(values).save(sys.argv[1])
"""
SERVE = """
folder, requests, *places = sys.argv[1:]
found = load_test.bench(Path(folder), [Path(place) for place in places], int(requests), 4)[-1]
print(json.dumps([found.p50, found.p99]))
"""
GATE = """
import tempfile
from tests.bench import gates
with tempfile.TemporaryDirectory() as folder:
    params = config.load(Path("params.yaml"), ("data.name=many", "data.source=folder"))
    gates.fill(Path(folder), params, ["one"])
    took = gates.judged(Path(folder), params, ["one"])
print(json.dumps([took]))
"""


@dataclass(frozen=True)
class Build:
    """One of the two: a shell command that packs its source, and the Python that has its packages."""

    pack: str
    python: Path

    @contextmanager
    def project(self) -> Iterator["Project"]:
        """Yield a fresh repository of the build's source, with a home of its own."""
        with tempfile.TemporaryDirectory(prefix="against-") as folder:
            root = Path(folder) / "project"
            (Path(folder) / "home").mkdir()
            root.mkdir()
            subprocess.run(f"{self.pack} | tar -x -C {shlex.quote(str(root))}", shell=True, cwd=PROJECT, check=True)
            for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "a project"]):
                subprocess.run([*GIT, "-C", str(root), *words], check=True)
            yield Project(root, self.python)


OURS = Build("git ls-files -coz --exclude-standard | tar --null -c -T -", Path(sys.executable))


@dataclass(frozen=True)
class Project:
    """A project in which commands of a build are run."""

    root: Path
    python: Path

    def run(self, *words: str) -> tuple[str, Cost]:
        """Run a command of the build's Python; return output and cost. Raises `RuntimeError` when it fails."""
        own = {"HOME": str(self.root.parent / "home"), "PYTHONPATH": str(self.root)}
        own |= {"PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONWARNINGS": "ignore"}
        dropped = ("PREFECT_", "MLFLOW_", "XDG_", "OMP_", "PVQAE_", "VIRTUAL_ENV")
        environ = {key: value for key, value in os.environ.items() if not key.startswith(dropped)} | own
        _adopt()
        with _watched() as used:
            text, cost = run([str(self.python), *words], self.root, environ)
        _reap()
        return text, replace(cost, cpu=sum(used.values()))

    def commit(self, words: str) -> None:
        """Commit all changes."""
        subprocess.run([*GIT, "-C", str(self.root), "add", "-A"], check=True)
        subprocess.run([*GIT, "-C", str(self.root), "commit", "-qm", words], check=True)

    def pvqae(self, *words: str) -> Cost:
        """Run `pvqae`; return its cost."""
        return self.run(str(self.python.parent / "pvqae"), *words)[1]

    def told(self, script: str, *words: str) -> list[float]:
        """Run a script; return the numbers that it prints last."""
        text, _ = self.run("-c", IMPORTS + script, *words)
        found: list[float] = json.loads(text.splitlines()[-1])
        return found

    def settle(self, **sections: dict[str, Any]) -> None:
        """Change params.yaml."""
        file = self.root / "params.yaml"
        params = yaml.safe_load(file.read_text("utf-8"))
        for name, values in sections.items():
            params[name] |= values
        file.write_text(yaml.safe_dump(params), "utf-8")

    def bottle(self, *, brief: bool, quick: bool, **sections: dict[str, Any]) -> "Project":
        """Bring in the class of real photographs, checked and split. `brief`: of a few steps; `quick`: small, too."""
        found = next(place for place in subjects.find_places(subjects.dataset_roots()) if place.category == CLASS)
        shutil.copytree(found.folder / CLASS, self.root / "data" / "raw" / "real" / CLASS)
        data = {"name": "real", "source": "mvtec", "categories": [CLASS]}
        steps: dict[str, Any] = {"train": {"steps": 6}, "prior": {"steps": 6}} if brief or quick else {}
        small = {"image": {"size": 64}, "memory": {"codes": 64}} if quick else {}
        for name, values in (*steps.items(), *small.items(), *sections.items()):
            self.settle(**{name: values})
        self.settle(data=data)
        self.list_one("real", CLASS)
        for words in (("data", "build"), ("data", "check")):
            self.pvqae(*words)
        return self

    def list_one(self, dataset: str, category: str) -> None:
        """Write `data/classes.yaml` of a dataset with one class; both builds read the same form."""
        graph = {
            "dataset": dataset,
            "networks": {category: {"classes": [category], "parent": "data/parents/none"}},
            "priors": {category: {"classes": [category], "allocations": f"models/{dataset}/networks/{category}"}},
            "classes": {category: {"network": category, "prior": category}},
            "made": {},
        }
        (self.root / "data" / "classes.yaml").write_text(yaml.safe_dump(graph), "utf-8")

    def trained(self) -> list[Cost]:
        """Make the class's bundle from its files; return the cost of each stage."""
        shutil.rmtree(self.root / "models" / "real", ignore_errors=True)
        shutil.rmtree(self.root / ".pvqae", ignore_errors=True)  # kept features
        return [self.pvqae(stage, CLASS) for stage in ("train", "prior", "calibrate")]

    @property
    def bundle(self) -> Path:
        """Return the class's bundle."""
        return self.root / "models" / "real" / CLASS / "bundle"

    @property
    def tests(self) -> list[str]:
        """Return the class's defective photographs."""
        return [str(path) for path in sorted((self.root / "data/raw/real" / CLASS / "test").glob("broken_*/*.png"))]


def run_(size: Size) -> list[Row]:
    """`make run` once all is installed, and the prior of a class of 44 normals, whose folds each have one."""
    words = ["-m", "flows", "train", *(word for text in TINY for word in ("--set", text))] if size.quick else []
    words = words or ["-m", "flows", "train"]
    name = "brick"

    def turn(build: Build) -> tuple[float, float, float]:
        with build.project() as project:
            whole = project.run(*words)[1]
            spaces = [project.root / ".pvqae" / "runs" / "demo", project.root]
            space = next(space for space in spaces if (space / "models" / "demo" / "priors" / name).exists())
            shutil.rmtree(space / "models" / "demo" / "priors" / name)
            prior = Project(space, project.python).pvqae("prior", name)
            return whole.cpu, whole.seconds, prior.cpu

    ours, theirs = _in_turns(turn, size, turns=3)
    return [
        _less("`make run`: processor time", ours[0], theirs[0], 0.5, "s"),
        _less("`make run`: wall", ours[1], theirs[1], None, "s"),
        _less(f"`prior` stage of {name}, cross-fitted", ours[2], theirs[2], 0.2, "s"),
    ]


TINY = (
    *("data.categories=[brick]", "image.size=64", "model.width=16", "train.steps=4", "prior.steps=4"),
    *("memory.codes=64", "calibration.folds=2", "evaluation.pictures=1", "train.kappa=0.01"),
)


def fit(size: Size) -> list[Row]:
    """From a class's files to a scorer that is fitted and calibrated: network, prior, memory, threshold."""
    with _both(size, lambda project: project.bottle(brief=False, quick=size.quick)) as projects:

        def turn(project: Project) -> tuple[float, float, float]:
            costs = project.trained()
            return sum(c.cpu for c in costs), sum(c.seconds for c in costs), max(c.peak_mb for c in costs)

        ours, theirs = _in_turns(turn, size, projects)
    what = f"{CLASS}: files to a fitted, calibrated scorer"
    return [
        _less(f"{what}, processor time", ours[0], theirs[0], 0.4, "s"),
        _less(f"{what}, wall", ours[1], theirs[1], None, "s"),
        _less(f"{what}, largest process", ours[2], theirs[2], 0.45, "MB"),
    ]


def score(size: Size) -> list[Row]:
    """From a file to its decision and map: one on one thread, many on all."""

    def made(project: Project) -> Project:
        project.bottle(brief=True, quick=size.quick).trained()
        return project

    cores = str(os.cpu_count() or 1)
    with _both(size, made) as projects:

        def turn(project: Project) -> tuple[float, float]:
            files = project.tests[: size.of(2, 32)]
            alone = project.told(SCORE, str(project.bundle), "1", *files)
            many = project.told(SCORE, str(project.bundle), cores, *files)
            return alone[0] * 1e3, 1 / many[1]

        ours, theirs = _in_turns(turn, size, projects)
    rows = [_less(f"{CLASS}: one file to decision and map, one thread", ours[0], theirs[0], 0.6, "ms")]
    ratio = ours[1] / theirs[1]
    what, against = f"{CLASS}: 32 files on {cores} cores", f"{OLDER}, {theirs[1]:.1f} images/s"
    return [*rows, Row(what, f"{ours[1]:.1f} images/s", against, ratio, *at_least(ratio, 1.8))]


def large(size: Size) -> list[Row]:
    """A photograph of 4096 x 3072 pixels in twelve views."""

    def made(project: Project) -> Project:
        image = {"aspect": "tile", "tiles": 3}
        project.bottle(brief=True, quick=size.quick, image=image).trained()
        # In a process of its own: the peak of what is started from here is never below what was in use here.
        project.run("-c", LARGE, "large.png", str(size.of(768, 3072)), str(size.of(1024, 4096)))
        return project

    with _both(size, made) as projects:

        def turn(project: Project) -> tuple[float, float]:
            words = ("-c", IMPORTS + SCORE, str(project.bundle), "1", str(project.root / "large.png"))
            text, cost = project.run(*words)
            return json.loads(text.splitlines()[-1])[0], cost.peak_mb

        ours, theirs = _in_turns(turn, size, projects)
    return [
        _less("4096 x 3072 in views: file to map, one thread", ours[0], theirs[0], 0.6, "s"),
        _less("4096 x 3072 in views: peak memory", ours[1], theirs[1], 1.0, "MB"),
    ]


def serve(size: Size) -> list[Row]:
    """What four clients wait for at once."""

    def made(project: Project) -> Project:
        project.bottle(brief=True, quick=size.quick).trained()
        return project

    with _both(size, made) as projects:

        def turn(project: Project) -> tuple[float, float]:
            p50, p99 = project.told(SERVE, str(project.bundle), str(size.of(20, 200)), *project.tests[:20])
            return p50, p99

        ours, theirs = _in_turns(turn, size, projects)
    what = "service over HTTP, 4 clients at once"
    return [
        _less(f"{what}, p50", ours[0], theirs[0], None, "ms"),
        _less(f"{what}, p99", ours[1], theirs[1], 0.5, "ms"),
    ]


def gate(size: Size) -> list[Row]:
    """The gate's verdict on one class: both bundles loaded, gate images scored by both, parity, the rules."""

    def turn(project: Project) -> tuple[float]:
        return (project.told(GATE)[0],)

    with _both(size, lambda project: project) as projects:
        ours, theirs = _in_turns(turn, size, projects)
    return [_less("gate's verdict, one class", ours[0], theirs[0], 0.5, "s")]


def retrain(size: Size) -> list[Row]:
    """Retrain a class of 500 normals when 20 have arrived."""
    count, new = size.of(24, 500), size.of(8, 20)
    side = size.of(64, 320)

    def turn(build: Build) -> tuple[float, float]:
        with build.project() as project:
            raw, landing = project.root / "data" / "raw" / "parts" / "nut", project.root / "landing" / "nut"
            rng = np.random.default_rng(0)
            for number in range(count + new):
                folder = raw / "good" if number < count else landing
                images.write(folder / f"{number:04}.png", _part(rng, side))
            for number in range(8):
                images.write(raw / "hole" / f"{number}.png", _part(rng, side, defect=True))
            few: dict[str, Any] = {"train": {"steps": 4}, "prior": {"steps": 4}} if size.quick else {}
            image: dict[str, Any] = {"image": {"size": 64}} if size.quick else {}
            sections = few | image | {"landing": {"url": "landing"}, "retrain": {"min_new": new // 2}}
            project.settle(data={"name": "parts", "source": "folder"}, **sections)
            project.run("-m", "dvc", "add", "-q", "data/raw/parts")
            project.commit("its normals")
            project.run("-m", "flows", "train")
            project.commit("what was trained")
            text, cost = project.run("-m", "flows", "retrain")
            assert f"{new} new" in text, text
            assert "train@nut" in text, text
            return cost.cpu, cost.seconds

    ours, theirs = _in_turns(turn, size, turns=1)
    what = f"retraining with {new} new normals in a class of {count}"
    return [
        _less(f"{what}, processor time", ours[0], theirs[0], 0.4, "s"),
        _less(f"{what}, wall", ours[1], theirs[1], None, "s"),
    ]


def _part(rng: np.random.Generator, side: int, defect: bool = False) -> images.Floats:
    """Return a nut-like disc on a grainy ground, a little displaced; with a dark spot on it where it has a `defect`."""
    ys, xs = np.mgrid[:side, :side] / side - 0.5 - rng.normal(0, 0.01, (2, 1, 1))
    radius = np.hypot(ys, xs)
    grey = np.where((radius < 0.35) & (radius > 0.12), 0.7, 0.3) + rng.normal(0, 0.03, (side, side))
    if defect:
        grey[np.hypot(ys - 0.2, xs) < 0.06] = 0.1
    return np.repeat(np.clip(grey, 0, 1)[..., None], 3, axis=2).astype(np.float32)


def _builds(size: Size) -> tuple[Build, Build]:
    """Return this build and the older one, which is installed first; this one twice where it is `quick`."""
    if size.quick:
        return OURS, OURS
    place = PLACE / OLDER
    older = Build(f"git archive {OLDER}", place / ".venv" / "bin" / "python")
    if not (place / ".venv" / ".installed").exists():
        print(f"installing the build of {OLDER} below {place}: minutes, 2.5 GB", file=sys.stderr, flush=True)
        if subprocess.run(["git", "cat-file", "-e", OLDER], cwd=PROJECT, capture_output=True).returncode:
            raise RuntimeError(f"{PROJECT}: no commit {OLDER}; a shallow clone lacks it: git fetch --unshallow")
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(f"{older.pack} | tar -x -C {shlex.quote(str(place))}", shell=True, cwd=PROJECT, check=True)
        subprocess.run(["make", ".venv/.installed"], cwd=place, check=True, stdout=sys.stderr)
    return OURS, older


@contextmanager
def _both(size: Size, made: Callable[[Project], Project]) -> Iterator[tuple[Project, Project]]:
    ours, theirs = _builds(size)
    with ours.project() as one, theirs.project() as other:
        yield made(one), made(other)


def _in_turns(
    turn: Callable[[Any], tuple[float, ...]],
    size: Size,
    pair: tuple[Project, Project] | None = None,
    turns: int = TURNS,
) -> tuple[list[float], list[float]]:
    """Return the medians of each figure, of this build and of the older one, which take turns."""
    found: list[list[tuple[float, ...]]] = [[], []]
    for number in range(size.of(1, turns)):
        for kept, one in zip(found, pair or _builds(size), strict=True):
            kept.append(turn(one))
            print(f"turn {number + 1}: {[round(value, 2) for value in kept[-1]]}", file=sys.stderr, flush=True)
    ours, theirs = ([statistics.median(values) for values in zip(*kept, strict=True)] for kept in found)
    return ours, theirs


def _adopt() -> None:
    """Become the parent of processes whose own has ended, so that servers that outlive a command are counted, too."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1)


def _reap() -> None:
    """End what a command has left running, as idle fork servers, and wait for it."""
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


@contextmanager
def _watched() -> Iterator[dict[tuple[int, float], float]]:
    """Yield seconds of processor time by pid and start, of all processes that are started from here meanwhile.

    Looked up again and again: of what a fork server starts, nothing is left to whoever waits for the server.
    """
    used: dict[tuple[int, float], float] = {}
    own, done = psutil.Process(), threading.Event()

    def look() -> None:
        while not done.wait(_PAUSE):
            for process in own.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    used[process.pid, process.create_time()] = times.user + times.system

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield used
    finally:
        done.set()
        watcher.join()


def _less(what: str, ours: float, theirs: float, floor: float | None, unit: str) -> Row:
    ratio = ours / theirs
    text, reached = ("", None) if floor is None else at_most(ratio, floor, "×")
    return Row(what, f"{ours:,.1f} {unit}", f"{OLDER}, {theirs:,.1f} {unit}", ratio, text, reached)
