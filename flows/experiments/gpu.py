"""Train and judge a packed class on the machine that it was packed for, inside the packed folder:

    python -m flows.experiments.gpu --work ../work --set model.backbone=vqgan --set train.steps=20000

The same command goes on where the last one was killed (a checkpoint every 10 s lies below --work, which must outlive
the command and lie outside the packed folder). The last one prints the figures as JSON and writes them to --work.
"""

import argparse
import json
from pathlib import Path

from flows.experiments import pieces
from flows.experiments.subjects import Subject
from pvqae.core import config, runtime
from pvqae.core.files import write_text
from pvqae.samples import manifest


def judge(folder: Path, work: Path, overrides: tuple[str, ...]) -> dict[str, float | None]:
    """Figures of the class packed in `folder`; trained first, or trained on."""
    params = config.load(folder / "params.yaml", overrides)
    runtime.apply(runtime.plan(params.compute, 1))
    subject = Subject(folder.resolve().name, manifest.read(folder / "manifest.csv"), folder)
    figures = pieces.judge(pieces.train(params, subject, work))
    write_text(work / "figures.json", json.dumps(figures, indent=1))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where checkpoints and figures lie")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a param")
    given = parser.parse_args()
    print(json.dumps(judge(Path.cwd(), given.work, tuple(given.set)), indent=1))


if __name__ == "__main__":
    main()
