"""docs/experiments/<name>.md: question, command, table, plot, answer. The answer is a person's: it lies in
answers/<name>.md, which is read here and never written."""

import platform
from collections.abc import Sequence
from pathlib import Path

from flows.experiments.catalogue import Experiment
from flows.experiments.plot import plot
from flows.experiments.runs import Done
from flows.experiments.tables import MEAN, VERDICTS, Row, rows
from pvqae.core import runtime
from pvqae.core.files import write_text

WORDS = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
    "s_prior_image_auroc": "S_prior alone, image AUROC",
    "product_image_auroc": "S_prior × S_recon, image AUROC",
    "spent": "codes spent",
    "least_share": "share of the least used level",
    "prior_gain": "prior's gain over frequencies, nats",
    "cross_entropy": "prior cross-entropy, nats",
    "seconds": "CPU seconds to train",
    "codebook_usage": "codebook in use",
    "error": "reconstruction error",
    "spearman": "Spearman of level and saving",
    "shuffled_raise": "error raised by shuffling",
    "png_correlation": "Spearman with PNG bytes",
    "gap_correlation": "Spearman with coarse-to-fine gap",
    "richness_spread": "richness spread",
    "spent_normal": "spent, normal",
    "spent_defect": "spent, defect",
    "changed_normal": "changed, normal",
    "changed_defect": "changed, defect",
    "cell_auroc": "cell AUROC",
    "deviations": "deviations",
    "megabytes": "MB of the prior",
    "milliseconds": "ms of the prior",
}


def write(name: str, experiment: Experiment, done: Sequence[Done], folder: Path, pictures: Path) -> Path:
    """Write the page and its plot to `folder`; `pictures` are copied where there are any. Returns the page."""
    table = rows(done)
    folder.mkdir(parents=True, exist_ok=True)
    plot(table, experiment.plot, WORDS[experiment.plot], folder / f"{name}.svg")
    kept = _copy(pictures, folder / name)
    page = folder / f"{name}.md"
    write_text(page, "\n".join(_lines(name, experiment, done, table, folder, kept)) + "\n")
    return page


def _lines(
    name: str, experiment: Experiment, done: Sequence[Done], table: list[Row], folder: Path, pictures: list[str]
) -> list[str]:
    computing = sum(run.seconds for run in done) / 60
    return [
        f"# {name}",
        "",
        f"**Question.** {experiment.question}",
        "",
        f"    python -m flows experiment {name}",
        "",
        f"{len(done)} runs, {_seeds(experiment.seeds)}; classes {', '.join(experiment.classes)}; "
        f"{computing:.0f} minutes of processor time on {machine()}. Mean ± standard deviation over seeds. "
        + experiment.note,
        "",
        *markdown(table, experiment.figures),
        "",
        f"![{WORDS[experiment.plot]}]({name}.svg)",
        "",
        *_pictures(name, pictures),
        *[f"* {line}" for line in VERDICTS.get(name, _no_verdict)(table)],
        "",
        "## Answer",
        "",
        _answer(folder / "answers" / f"{name}.md"),
    ]


def _seeds(count: int) -> str:
    return "seed 0" if count == 1 else f"seeds 0 to {count - 1}"


def _no_verdict(_: list[Row]) -> list[str]:
    return []


def markdown(table: Sequence[Row], figures: Sequence[str]) -> list[str]:
    """The table's lines; a column that no row has is left out."""
    known = [key for key in figures if any(key in row.cells for row in table)]
    head = ["variant", "class", *(WORDS[key] for key in known)]
    lines = [_line(head), _line(["---"] * 2 + ["---:"] * len(known))]
    for row in table:
        bold = "**" if row.category == MEAN else ""
        cells = [f"{bold}{row.cells[key]}{bold}" if key in row.cells else "" for key in known]
        lines.append(_line([row.label, row.category, *cells]))
    return lines


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _pictures(name: str, pictures: list[str]) -> list[str]:
    if not pictures:
        return []
    words = "Test images of the demo with their masks' outlines; expected and actual resolutions (dark coarse, light "
    lines = [words + "fine); S_prior.", ""]
    for picture in pictures:
        lines += [f"{Path(picture).stem}:", "", f"![{Path(picture).stem}]({name}/{picture})", ""]
    return lines


def _copy(pictures: Path, target: Path) -> list[str]:
    names = sorted(path.name for path in pictures.glob("*.png")) if pictures.is_dir() else []
    for name in names:
        target.mkdir(exist_ok=True)
        (target / name).write_bytes((pictures / name).read_bytes())
    return names


def _answer(file: Path) -> str:
    if not file.exists():
        return f"Not written yet: whoever reads the numbers writes two sentences into answers/{file.name}."
    return file.read_text("utf-8").strip()


def machine() -> str:
    """Processor and number of cores that this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {runtime.cores()} cores"
