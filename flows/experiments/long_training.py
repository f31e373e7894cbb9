"""What does the paper's own form reach, on pixels, when it is trained for long? Figures along one training.

A training is measured at several of its steps by the one scoring path, and goes on: a kill costs seconds, and the page
grows with every point. Pictures of images that may not be published stay below the work folder.

S side of a view.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flows.experiments import mechanism, trial
from flows.experiments.catalogue import Overrides, Row, with_params
from flows.experiments.page import markdown, processor
from flows.experiments.subjects import Subject, key_of, source_of
from flows.experiments.trained import Trained, train
from pvqae.core import config, runtime
from pvqae.core.errors import ConfigError
from pvqae.core.files import write_text
from pvqae.report import pictures
from pvqae.samples import geometry

BASE = (
    "model.backbone=vqgan",
    "image.size=256",
    "train.batch=4",
    "train.lr=5e-4",
    "train.adversarial=true",
    "score.recon=decoder",
)
SETTINGS: dict[str, Overrides] = {
    "linear": {},  # lambda from 0 to 1.25: the paper's best
    "constant": {"train.schedule": "constant", "train.lambda_max": 1.0},
    "perceptual": {"train.perceptual": 1.0},
}
_PAPER = {"image_auroc": 0.973, "pixel_auroc": 0.959}  # means over the 15 classes of MVTec AD
_SHOWN = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
    "s_prior_image_auroc": "S_prior, image AUROC",
    "product_image_auroc": "S_prior × S_recon, image AUROC",
    "product_pixel_auroc": "S_prior × S_recon, pixel AUROC",
    "error": "error",
    "spent": "codes spent",
    "codebook_usage": "codebook in use",
    "prior_gain": "prior's gain, nats",
}
_SOURCES = (*trial.SOURCES, "pvqae/calibration", "pvqae/inference", "pvqae/evaluation")
_JUDGED = ("image_auroc", "pixel_auroc", "aupro")
_STRIPS = 6  # images that are drawn


@dataclass(frozen=True)
class Effort:
    """How long is trained, and at which shares of it figures are measured; at the last, every budget is tried."""

    steps: int = 6000
    shares: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)

    @property
    def points(self) -> list[int]:
        """Return the steps at which figures are measured."""
        return sorted({max(1, round(share * self.steps)) for share in self.shares})


QUICK = Effort(4, (0.5, 1.0))


@dataclass(frozen=True)
class Point:
    """One training, measured after so many of its steps."""

    setting: str
    category: str
    seed: int
    step: int
    figures: Row
    budgets: dict[str, Row]  # by `mechanism.BUDGETS`; empty but at the last step
    seconds: float  # of processor time for a step, as far as this measurement trained any

    def __str__(self) -> str:
        return f"{self.setting}, {self.category}, seed {self.seed}, step {self.step}"


def chosen(names: Sequence[str]) -> list[str]:
    """Return the settings asked for, all where none is. Raises `ConfigError` for one that is not there."""
    if unknown := [name for name in names if name not in SETTINGS]:
        raise ConfigError(f"no setting {', '.join(unknown)}; choose of {', '.join(SETTINGS)}")
    return list(names or SETTINGS)


def run(
    found: Sequence[Subject],
    params: config.Params,
    settings: Sequence[str],
    seeds: Sequence[int],
    work: Path,
    effort: Effort,
    go_on: bool = True,
) -> Iterator[Point]:
    """Train each class with each setting, and yield every point, measured now or before; before only unless `go_on`."""
    for seed in seeds:
        for setting in settings:
            own = with_params(params, {**SETTINGS[setting], "train.steps": effort.steps, "seed": seed})
            for subject in found:
                for step in effort.points:
                    file = _file(own, setting, subject, work, step)
                    if go_on and not file.exists():
                        point, trained = _measured(own, setting, subject, work, effort, step)
                        _draw(trained, file.with_suffix(""))
                        write_text(file, json.dumps(asdict(point), indent=1))
                    if file.exists():
                        yield Point(**json.loads(file.read_text("utf-8")))


def _file(params: config.Params, setting: str, subject: Subject, work: Path, step: int) -> Path:
    samples = subject.rows[["sample_id", "sha256", "split"]].values.tolist()
    facts = params.model_dump(mode="json", include={*trial.SAVED, "prior", "score"})
    key = key_of(samples, facts, source_of(*_SOURCES))
    return work / "long" / f"{subject.name}-{setting}-{params.seed}-{key}" / f"step-{step:06}.json"


def _measured(
    params: config.Params, setting: str, subject: Subject, work: Path, effort: Effort, step: int
) -> tuple[Point, Trained]:
    """Train up to the step and measure."""
    before = max((point for point in effort.points if point < step), default=0)
    begun = time.process_time()
    found = train(params, subject, work, until=step)
    seconds = (time.process_time() - begun) / (step - before)
    budgets: dict[str, Row] = {}
    if step == effort.points[-1]:
        for name, put in mechanism.BUDGETS.items():
            figures = replace(found, networks=put(found.networks)).figures()
            budgets[name] = {key: figures.get(key) for key in _JUDGED}
        raised = mechanism.shuffled_raise(found.networks, found.learnt, params.seed)
        budgets["expected"] |= {"spearman": found.use()["spearman"], "shuffled_raise": raised}
    return Point(setting, subject.name, params.seed, step, found.figures(), budgets, seconds), found


def _draw(found: Trained, folder: Path) -> None:
    """Draw normals and defects of the test: image, reconstruction with the expected budget, expected and own levels.

    Images may not be published, so neither may these.
    """
    rows = found.test.groupby(["label", "kind"]).head(2).sort_values(["label", "kind"], ascending=False)[:_STRIPS]
    for position, row in zip(rows.index.tolist(), rows.to_dict("records"), strict=True):
        one = found.unseen.subset(torch.arange(len(found.test)).eq(position))
        assert one.images is not None, "of a network that is trained the pixels are kept"
        again, levels = mechanism.reconstruct(found.networks, one), found.params.model.levels
        picture = _bytes(one.images[0])
        side = (picture.shape[0], picture.shape[1])
        mask = geometry.mask_of(row["mask_path"], (int(row["height"]), int(row["width"])), found.subject.root)
        strip = [
            pictures.outline(picture, geometry.resize_mask(mask, *side)),
            _bytes(again.images[0]),
            *(pictures.level_map(cells[0].numpy(), levels, side) for cells in (again.expected, again.own)),
        ]
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{row['label']}-{row['kind'] or 'good'}-{position}.png"
        (folder / name).write_bytes(pictures.png(np.concatenate(strip, axis=1)))


def _bytes(image_3SS: Tensor) -> NDArray[np.uint8]:
    return (image_3SS.movedim(0, -1).float().numpy() * 255).round().clip(0, 255).astype(np.uint8)


def page(
    points: Sequence[Point], command: str, params: config.Params, effort: Effort, plotted: str, answer: str
) -> str:
    """Return the page: what was run, the curves as a table and a picture, budgets at the end, and a person's answer."""
    latest = {(point.setting, point.category, point.seed): point for point in points}.values()
    short = [f"{point.setting}, {point.category}: step {point.step}" for point in latest if point.step < effort.steps]
    words = {name: ", ".join(f"`{key}={value}`" for key, value in SETTINGS[name].items()) for name in SETTINGS}
    used = [f"{name}: {words[name] or 'as they are'}" for name in dict.fromkeys(point.setting for point in points)]
    lines = [
        "# vqgan_long",
        "",
        "**Question.** What does the paper's own form, a VQ autoencoder trained on pixels, reach when it is trained "
        "for hours, and does the budget matter there?",
        "",
        f"    {command}",
        "",
        f"{effort.steps} steps of {params.train.batch} images of {params.image.size} px, width {params.model.width}, "
        f"{params.model.codes} codes, learning rate {params.train.lr:g}, λ {params.train.schedule} to "
        f"{params.train.lambda_max:g}, L1 + SSIM, nothing quantised before step "
        f"{round(params.train.warmup * effort.steps)}, the discriminator used from the half on; on {processor()}, "
        f"{runtime.cores()} cores. The decoder's residual is the score. Settings change that: {'; '.join(used)}. Each "
        "row is a look at the class's test set.",
        "",
        *([f"**Not finished:** {'; '.join(short)}.", ""] if short else []),
        *_table(points),
        "",
        f"![figures along the training]({plotted})",
        "",
        *_budgets([point for point in latest if point.budgets]),
        "## Answer",
        "",
        answer.strip() or "Not written yet.",
    ]
    return "\n".join(lines) + "\n"


def _table(points: Sequence[Point]) -> list[str]:
    heads = ["setting", "class", "seed", "step", *_SHOWN.values(), "levels, coarse to fine", "processor s of a step"]
    lines = []
    for point in points:
        shares = (point.figures[key] or 0 for key in sorted(point.figures) if key.startswith("share_"))
        values = (_number(point.figures.get(key)) for key in _SHOWN)
        ends = [" ".join(f"{share:.2f}" for share in shares), f"{point.seconds:.2f}"]
        lines.append([point.setting, point.category, str(point.seed), str(point.step), *values, *ends])
    return markdown(heads, lines, text=2)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _budgets(points: Sequence[Point]) -> list[str]:
    if not points:
        return []
    lines = [
        [point.setting, point.category, name, *(_number(row.get(key)) for key in _JUDGED)]
        for point in points
        for name, row in point.budgets.items()
    ]
    facts = [
        f"* {point.setting}, {point.category}: Spearman of a cell's level and what fine codes save there "
        f"{_number(own.get('spearman')) or 'undefined'}; shuffling the expected budget raises the error of normals by "
        f"{own.get('shuffled_raise') or 0:.1%}."
        for point in points
        for own in [point.budgets["expected"]]
    ]
    heads = ["setting", "class", "budget at inference", *(_SHOWN[key] for key in _JUDGED)]
    return ["## The budget at inference", "", *markdown(heads, lines, text=3), "", *facts, ""]


def plot(points: Sequence[Point]) -> str:
    """Return an SVG: a row for each class, AUROC of score, S_prior and product of images and of pixels, error."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "pvqae"
    categories = list(dict.fromkeys(point.category for point in points))
    settings = list(dict.fromkeys(point.setting for point in points))
    columns: list[tuple[str, dict[str, str]]] = [
        ("image AUROC", {"image_auroc": "-", "s_prior_image_auroc": "--", "product_image_auroc": ":"}),
        ("pixel AUROC", {"pixel_auroc": "-", "s_prior_pixel_auroc": "--", "product_pixel_auroc": ":"}),
        ("error of unseen normals", {"error": "-"}),
    ]
    drawn, axes = pyplot.subplots(
        len(categories), len(columns), figsize=(11, 3 * len(categories)), squeeze=False, layout="constrained"
    )
    for row, category in zip(axes, categories, strict=True):
        for axis, (title, figures) in zip(row, columns, strict=True):
            for colour, setting in enumerate(settings):
                own = [point for point in points if (point.setting, point.category) == (setting, category)]
                for key, style in figures.items():
                    known = [(point.step, value) for point in own if (value := point.figures.get(key)) is not None]
                    label = setting if style == "-" else None
                    axis.plot(*np.array(known).reshape(-1, 2).T, style, marker=".", color=f"C{colour}", label=label)
            if paper := _PAPER.get(next(iter(figures))):
                axis.axhline(paper, color="black", linewidth=0.7)
            axis.set_xscale("log")
            axis.set_title(f"{category}: {title}", fontsize="medium")
            axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize="small", title="– score, -- S_prior, ·· product", title_fontsize="x-small")
    for axis in axes[-1]:
        axis.set_xlabel("steps")
    text = StringIO()
    drawn.savefig(text, format="svg", metadata={"Date": None})
    pyplot.close(drawn)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"
