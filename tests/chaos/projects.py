"""A small project to be killed at: a clone, commands on it, and a death of any of them at any moment."""

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import psutil
import yaml

from flows.adapters import prefect_server
from flows.machines.service_processes import free_ports
from pvqae.datasets import demo
from tests.clones import clone

DATASET, CATEGORY, MODEL = "tiles", "part", "pvqae-tiles-part"
FIRST = 90  # photographs of the first training; enough parts for the gate
TINY = (
    *(f"data.name={DATASET}", "data.source=folder", "data.shares={calibrate: 0.2, gate: 0.3, test: 0.1}"),
    *("image.size=64", "model.width=16", "train.steps=20", "prior.steps=5", "memory.codes=64"),
    *("calibration.folds=2", "evaluation.pictures=0", "compute.threads=1", "train.kappa=0.01"),
)
# The project's own settings of what changes no result.
OWN = {
    "landing": {"url": "landing"},
    "retrain": {"min_new": 1, "screen_margin": 9.0},
    "gate": {"latency_ratio": 99.0},  # a busy machine measures milliseconds badly
}
FLOWS = (sys.executable, "-m", "flows")
LINGER = 10.0  # seconds that what a killed flow has started may live on
POLL = 0.01

# Who dies: the flow's process; all of its process group, as by a terminal; all of the project at once, as by the power.
How = Literal["alone", "group", "all"]
HOWS: tuple[How, ...] = ("alone", "group", "all")


class Flow(Protocol):
    """What is needed of a command that runs: as of `subprocess.Popen`."""

    pid: int

    def poll(self) -> int | None: ...
    def kill(self) -> None: ...


class Forked:
    """A command that `Oven` has forked."""

    def __init__(self, oven: "Oven", pid: int) -> None:
        self._oven, self.pid = oven, pid
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            self._code = self._oven.ask({"pid": self.pid})
        return self._code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


# What flows import; a command that moves an alias needs less.
FLOW_MODULES = ("flows.train.train", "flows.retrain.retrain", "flows.serving.score", "flows.gate.promote")
ALIAS_MODULES = ("flows.versions.promotions", "flows.train.train", "flows.versions.report_page")


class Server:
    """A Prefect server that outlives the flows of a trial; its files are below `home`."""

    def __init__(self, home: Path) -> None:
        port = free_ports(1)[0]
        self.api = f"http://127.0.0.1:{port}/api"
        own = {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "HOME": str(home)}
        words = ["server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
        outside = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
        with (home / "server.log").open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "prefect", *words],
                cwd=home, env=outside | own, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 180
        while not prefect_server.answers(f"{self.api}/health"):
            assert time.monotonic() < deadline, (home / "server.log").read_text()[-2000:]
            time.sleep(0.5)

    def close(self) -> None:
        _end(self._process)


def _end(process: "subprocess.Popen[Any]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


class Oven:
    """Keeps commands on one project warm: `tests/chaos/warm.py` has imported `modules` and forks them."""

    def __init__(self, project: "Project", home: Path, modules: Sequence[str], api: str = "") -> None:
        self._log = home / "warm.log"
        own = {"PREFECT_API_URL": api, "PREFECT_HOME": str(home)} if api else {}
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("warm.py")), *modules],
                cwd=project.root, env=project.environ | own,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out, text=True, start_new_session=True,
            )  # fmt: skip
        assert self._answer() == "ready"

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self, words: Sequence[str], log: Path) -> Forked:
        return Forked(self, int(self.ask({"words": list(words), "log": str(log)})))

    def ask(self, question: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, self._log.read_text(errors="replace")[-3000:]
        return line

    def close(self) -> None:
        _end(self._process)


@dataclass(frozen=True)
class Project:
    """A clone below `place`, with a home and photographs of its own; commands come warm out of the `oven` if any."""

    root: Path
    oven: Oven | None = None

    @property
    def place(self) -> Path:
        return self.root.parent

    @property
    def space(self) -> Path:
        return self.root / ".pvqae" / "runs" / DATASET

    @property
    def shore(self) -> Path:
        return self.root / "landing" / CATEGORY

    @property
    def database(self) -> Path:
        return self.root / ".pvqae" / "mlflow" / "mlflow.db"

    @property
    def environ(self) -> dict[str, str]:
        (self.place / "tmp").mkdir(exist_ok=True)
        own = {"HOME": str(self.place / "home"), "PYTHONPATH": str(self.root), "TMPDIR": str(self.place / "tmp")}
        own |= {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        own |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        dropped = ("PREFECT_", "MLFLOW_", "XDG_", "AWS_", "PVQAE_")
        return {key: value for key, value in os.environ.items() if not key.startswith(dropped)} | own

    def start(self, *words: str, cold: bool = False) -> Flow:
        """One command in a process group of its own; what it prints is in `log`. `cold`: not out of the oven."""
        if self.oven and not cold:
            return self.oven.start(words, self.log)
        with self.log.open("wb") as out:
            return subprocess.Popen(
                [*FLOWS, *words], cwd=self.root, env=self.environ, stdout=out, stderr=out, start_new_session=True
            )

    @property
    def log(self) -> Path:
        return self.place / "log"

    def run(self, *words: str, expect: tuple[int, ...] = (0,), patience: float = 600) -> str:
        """One command to its end; what it printed."""
        code = ended(self.start(*words), patience)
        text = self.log.read_text("utf-8", errors="replace")
        assert code in expect, f"{words}: exit {code}\n{text[-6000:]}"
        return text

    def processes(self) -> list[psutil.Process]:
        """Every living process that has to do with this project, by its environment, folder or command."""
        ours = {os.getpid(), self.oven.pid if self.oven else 0}
        return [process for process in psutil.process_iter() if process.pid not in ours and self._of(process)]

    def _of(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            words = [*process.environ().values(), *process.cmdline(), process.cwd()]
        except (psutil.Error, OSError):  # ended meanwhile, or another user's
            return False
        return any(str(self.place) in word for word in words)

    def rows(self, table: str) -> int:
        """Rows of a table of the tracking database: how far a flow has come; 0 while there is none."""
        try:
            with sqlite3.connect(f"file:{self.database}?mode=rw", uri=True, timeout=1) as base:
                found = int(base.execute(f"select count(*) from {table}").fetchone()[0])
            base.close()
        except sqlite3.Error:
            return 0
        return found


def ended(flow: Flow, patience: float = 600) -> int:
    """The exit code of a command, once it has ended."""
    deadline = time.monotonic() + patience
    while (code := flow.poll()) is None:
        assert time.monotonic() < deadline, "the command does not end"
        time.sleep(POLL)
    return code


def settings(*more: str) -> list[str]:
    return [word for setting in (*TINY, *more) for word in ("--set", setting)]


def train(project: Project, seed: int) -> tuple[str, ...]:
    """The words of a training of the photographs with another seed: another bundle."""
    return ("train", *settings(f"data.root={project.place / 'photographs'}", f"seed={seed}"))


def made(place: Path) -> Project:
    """The working tree's code as a fresh repository, photographs beside it, nothing trained."""
    project = Project(clone(place).root)
    file = project.root / "params.yaml"
    values = yaml.safe_load(file.read_text("utf-8"))
    for section, own in OWN.items():
        values[section] |= own
    file.write_text(yaml.safe_dump(values), "utf-8")
    demo.make_surfaces(place / "photographs", FIRST)
    return project


def later(place: Path, count: int) -> list[Path]:
    """Photographs of parts that the first training has not seen."""
    demo.make_surfaces(place / "all", FIRST + count)
    return sorted((place / "all" / CATEGORY / "good").glob("*.png"))[FIRST:]


def land(project: Project, found: list[Path], name: str) -> None:
    """New photographs, one that is cut off, and a copy of a known one: whole at once, as from a camera's upload."""
    project.shore.mkdir(parents=True, exist_ok=True)
    known = project.place / "photographs" / CATEGORY / "good" / "000.png"
    contents = {f"{name}-{path.stem}.png": path.read_bytes() for path in found}
    contents |= {f"{name}-cut.png": found[0].read_bytes()[:700], f"{name}-again.png": known.read_bytes()}
    for file, data in contents.items():
        (project.place / "beside").write_bytes(data)
        shutil.move(project.place / "beside", project.shore / file)


@dataclass(frozen=True)
class Killed:
    """What came of one try: `ended` when the command was done before its death, which is no kill."""

    how: How
    when: str
    seconds: float
    ended: bool
    orphans: tuple[str, ...]  # command lines of what lived on
    said: str

    def __str__(self) -> str:
        return f"{self.how} {self.when} after {self.seconds:.1f} s"


When = float | tuple[str, Callable[[], bool]]  # seconds from the start, or a name and what must have happened
Aim = tuple[str, Callable[[], Callable[[], bool]]]  # a name, and what makes the question of a new try


def kill(
    project: Project, words: tuple[str, ...], when: When, how: How, delay: float = 0.0, cold: bool = False
) -> Killed:
    """Start a command and kill it at a moment, `delay` seconds later than what was waited for."""
    began = time.monotonic()
    flow = project.start(*words, cold=cold)
    while flow.poll() is None and not _due(when, began):
        time.sleep(POLL)
    time.sleep(delay)
    seconds, done = time.monotonic() - began, flow.poll() is not None
    victims = project.processes() if how == "all" else []
    if how == "alone":
        flow.kill()
    elif not done:
        try:
            os.killpg(flow.pid, signal.SIGKILL)
        except ProcessLookupError:  # so young that it leads no group yet
            flow.kill()
    for process in victims:
        _kill(process)
    ended(flow)
    name = f"{when:.1f} s" if isinstance(when, float) else when[0]
    left = tuple(left_over(project))
    return Killed(how, name, seconds, done, left, project.log.read_text("utf-8", errors="replace"))


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.Error:
        return


def _due(when: When, began: float) -> bool:
    return time.monotonic() - began >= when if isinstance(when, float) else when[1]()


def left_over(project: Project) -> list[str]:
    """Command lines of what still lives `LINGER` seconds after a death; it is ended then, to disturb nothing else."""
    deadline = time.monotonic() + LINGER
    while (found := project.processes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    names = []
    for process in found:
        try:
            names.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
        _kill(process)
    return names


def served(project: Project) -> bool:
    """Whether a command starts the temporary server of Prefect that a flow without another gets."""
    return project.log.exists() and "starting a temporary Prefect server" in project.log.read_text(
        "utf-8", errors="replace"
    )


def grows(project: Project, table: str) -> Callable[[], bool]:
    """Whether `table` of the tracking database has more rows than now: a phase of a flow has just begun."""
    before = project.rows(table)
    return lambda: project.rows(table) > before


class Moments:
    """Moments of death, by a seed: uniform over a command's length, but a `share` just after one of the `aims`."""

    def __init__(self, seed: int, length: float, aims: list[Aim], share: float = 0.4) -> None:
        self._rng, self._length, self._aims, self._share = random.Random(seed), length, aims, share
        self._number = 0

    def next(self) -> tuple[When, How, float]:
        """When, how, and seconds to wait after an aim."""
        how = HOWS[self._number % len(HOWS)]
        self._number += 1
        if self._aims and self._rng.random() < self._share:
            name, happened = self._rng.choice(self._aims)
            return (name, happened()), how, self._rng.choice((0.0, 0.0, self._rng.uniform(0, 0.3)))
        return self._rng.uniform(0.2, self._length), how, 0.0
