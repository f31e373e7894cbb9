"""`make flames`: where the time of a training, of scoring and of a whole flow goes; writes docs/pictures/flame_*.svg.

`python -m tests.bench.flames [NAME ...]`. Each is sampled by py-spy from outside: plots of numbers, no picture of data.
"""

import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

PROJECT = Path(__file__).parents[2]
PICTURES = PROJECT / "docs" / "pictures"
INSIDE = "--inside"


def training() -> None:
    """A class of the demo from its files to a fitted scorer."""
    from tests.bench.subject import context

    found = context("brick", False)
    with tempfile.TemporaryDirectory() as work:
        replace(found, work=Path(work)).scorer()


def inference() -> None:
    """200 images, one after another, from file to decision and map."""
    from pvqae.samples import images
    from tests.bench.subject import BRIEF, context

    found = context("brick", False, *BRIEF)
    ours = found.scorer()
    paths = list(found.test["path"])
    for index in range(200):
        assert ours.one(images.read(paths[index % len(paths)], found.subject.root)).anomaly_map.size


def flow() -> None:
    """A flow of one tiny class, registration included: what is around the training."""
    from tests.bench.noop import train
    from tests.clones import TINY, clone

    with tempfile.TemporaryDirectory() as folder:
        train(clone(Path(folder)), (*TINY, "train.steps=30"))


FLAMES = {"training": training, "inference": inference, "flow": flow}


def main() -> None:
    if sys.argv[1:2] == [INSIDE]:
        FLAMES[sys.argv[2]]()
        return
    for name in sys.argv[1:] or FLAMES:
        out = PICTURES / f"flame_{name}.svg"
        spy = [str(Path(sys.executable).with_name("py-spy")), "record", "--rate", "50", "--output", str(out)]
        inside = [sys.executable, "-m", "tests.bench.flames", INSIDE, name]
        more = ["--subprocesses"] if name == "flow" else []
        subprocess.run([*spy, *more, "--", *inside], cwd=PROJECT, check=True)
        out.write_text(plain(out.read_text("utf-8")), "utf-8")
        print(out)


def plain(svg: str) -> str:
    """Without this machine's folders."""
    home = str(Path(sys.executable).parent)
    for place in (home, str(PROJECT)):
        svg = svg.replace(f"{place}/", "")
    return re.sub(r"/tmp/[\w./-]*/", "", svg)


if __name__ == "__main__":
    main()
