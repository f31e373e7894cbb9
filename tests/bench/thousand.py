"""A thousand classes against ten: what the steps that see all classes cost, and that none of them loads models."""

import os
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from flows.adapters import registry
from flows.adapters.tracking import Registry, own_database
from flows.core import classes, environment
from flows.versions import promotions
from pvqae.core import config
from pvqae.core.files import write_text
from pvqae.core.layout import Layout
from pvqae.samples.classes import read
from tests.bench import gates
from tests.bench.processes import run
from tests.bench.rows import Row, Size, at_most, seconds
from tests.pvqae.evaluation.conftest import made

PROJECT = Path(__file__).parents[2]
JUDGED = 10  # classes that the gate is asked about
REPORT = (
    "import sys, pathlib; from pvqae.report.report import report; from pvqae.core.layout import Layout;"
    "report(Layout(pathlib.Path.cwd(), 'many')); sys.exit('torch' in sys.modules or 'safetensors' in sys.modules)"
)


def thousand(size: Size) -> list[Row]:
    few, many = size.of(2, 10), size.of(6, 1000)
    environment.prepare(Path(tempfile.mkdtemp()))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        spaces = {count: space(root / str(count), count) for count in (few, many)}
        tracking = registry.Mlflow(own_database(root), root / "artifacts")
        return [
            row("classes.yaml written and read", spaces, listed),
            row("DVC's graph: `dvc status` of one stage", spaces, parsed),
            row("report and its page, no model loaded", spaces, reported),
            row("versions registered, promoted and found again", spaces, lambda place: registered(tracking, place)),
            row(f"the gate's verdict, asked of {JUDGED} of them", spaces, lambda place: judged(place, size)),
        ]


def row(what: str, spaces: dict[int, Path], work: Callable[[Path], float]) -> Row:
    """Seconds per class must not grow with the number of classes; what a step costs once is in both."""
    (few, small), (many, large) = ((count, work(place)) for count, place in spaces.items())
    ratio = (large / many) / (small / few)
    against = f"{few} classes: {small:.2f} s"
    return Row(f"{many:,} classes: {what}", f"{large:.2f} s", against, ratio, *at_most(ratio, 1.2, "× per class"))


def space(root: Path, count: int) -> Path:
    """A workspace with `count` classes, each with the evaluation of one made class."""
    names = [f"class_{number:04}" for number in range(count)]
    params = config.parse({"data": {"name": "many", "source": "folder"}})
    write_text(root / "params.yaml", config.dump(params))
    classes.write(root / "data" / "classes.yaml", classes.classes(params, names))
    shutil.copyfile(PROJECT / "dvc.yaml", root / "dvc.yaml")
    layout = Layout(root, "many")
    made(root).evaluate(layout.class_report(names[0]), pictures=1)
    for name in names[1:]:
        shutil.copytree(layout.class_report(names[0]), layout.class_report(name))
    return root


def listed(root: Path) -> float:
    file = root / "data" / "classes.yaml"
    content = classes.read(file)

    def work() -> None:
        file.unlink()
        classes.write(file, content)
        read(file, "many")

    return statistics.median(seconds(work) for _ in range(max(3, 1000 // len(content["classes"]))))


def parsed(root: Path) -> float:
    if not (root / ".dvc").exists():
        dvc(root, "init", "-q", "--no-scm")
    return dvc(root, "status", "report")


def dvc(root: Path, *words: str) -> float:
    return run([sys.executable, "-m", "dvc", *words], root, dict(os.environ))[1].seconds


def reported(root: Path) -> float:
    environ = dict(os.environ) | {"PYTHONPATH": str(PROJECT)}
    return run([sys.executable, "-c", REPORT], root, environ)[1].seconds


def judged(root: Path, size: Size) -> float:
    """Seconds for all classes, by those of some: what could grow with their number is what each reads of all."""
    params, names = config.load(root / "params.yaml"), class_names(root)
    some = random.Random(0).sample(names, size.of(1, min(JUDGED, len(names))))
    gates.fill(root, params, names)
    return gates.judged(root, params, some) / len(some) * len(names)


def class_names(root: Path) -> list[str]:
    return list(classes.read(root / "data" / "classes.yaml")["classes"])


def registered(tracking: Registry, root: Path) -> float:
    """What the registry does for a class, without its model's files: the same for any number of classes."""
    names = [f"pvqae-{root.name}-{name}" for name in class_names(root)]
    run_id = tracking.start("many", "train")

    def work() -> None:
        for name in names:
            version = tracking.register(name, run_id, "file:///nowhere", {"bundle_sha256": name})
            promotions.move(tracking, name, "champion", version, kind="initial", reasons=("a bench",))
        for name in names:
            if tracking.find(name, {"bundle_sha256": name}) != tracking.alias(name, "champion"):
                raise RuntimeError(f"{name}: its version is not found")

    return seconds(work)
