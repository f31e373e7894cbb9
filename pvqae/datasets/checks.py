"""Facts about manifest rows as plain columns, one per thing that can be wrong: what the expectations look at."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pandas as pd

from pvqae import runtime
from pvqae.datasets import bounds
from pvqae.datasets.classes import Classes
from pvqae.datasets.images import read_mask
from pvqae.errors import DataError
from pvqae.layout import ARRIVED

TRAINING = ("train", "calibrate")  # small classes are calibrated by folds and train on both


def in_one_split(frame: pd.DataFrame, key: str) -> pd.Series:
    """True on rows whose value of `key` occurs in a single split."""
    pairs = frame[[key, "split"]].drop_duplicates()
    return ~frame[key].isin(pairs.loc[pairs[key].duplicated(), key])


def mask_kept(frame: pd.DataFrame) -> pd.Series:
    """False on defects without a mask in a class where another defect has one.

    Synthetic defects (below gate/) have masks in every class, so they promise nothing for the photographed ones; those
    that a person labelled in review have none, and need none at the gate.
    """
    defect, masked = frame["label"] == "defect", frame["mask_path"] != ""
    made = frame["path"].str.startswith("gate/")
    arrived = frame["path"].str.contains(f"/{ARRIVED}/", regex=False)
    promised = (defect & masked).groupby([frame["category"], made, arrived]).transform("any")
    return ~defect | masked | ~promised


def _mask_problem(data: Path, path: str, height: int, width: int) -> str:
    try:
        mask = read_mask(Path(path), data)
    except DataError:
        return "unreadable"
    if mask.shape != (height, width):
        return "size"
    return "" if mask.any() else "empty"


def mask_problems(frame: pd.DataFrame, data: Path) -> pd.Series:
    """Per row "" or what is wrong with its mask: unreadable, size or empty. Decodes the masks of defects only."""
    rows = frame[(frame["label"] == "defect") & (frame["mask_path"] != "")]
    with ThreadPoolExecutor(max_workers=min(8, runtime.cores())) as pool:  # decoding leaves the interpreter free
        problems = list(pool.map(partial(_mask_problem, data), rows["mask_path"], rows["height"], rows["width"]))
    return pd.Series(problems, index=rows.index, dtype=str).reindex(frame.index, fill_value="")


def _deviations(frame: pd.DataFrame, statistics: pd.DataFrame) -> pd.DataFrame:
    """Per statistic two columns, of normals to train with and of held-out ones; NaN on all other rows."""
    normal = frame["label"] == "normal"
    training = normal & frame["split"].isin(TRAINING)
    facts = pd.DataFrame(index=frame.index)
    for name in statistics:
        distance = bounds.deviations(frame, statistics[name], normal & (frame["split"] == "train")).round(3)
        facts[f"{name}_deviation"] = distance.where(training)
        facts[f"{name}_deviation_held_out"] = distance.where(normal & ~training)
    return facts


def of_images(frame: pd.DataFrame, statistics: pd.DataFrame, data: Path) -> pd.DataFrame:
    """`frame` with its facts. `statistics`: one column each, indexed by sha256, with `std`; `data` holds the masks."""
    known = statistics.reindex(frame["sha256"]).set_index(frame.index)
    normal = frame["label"] == "normal"
    defective_groups = frame.loc[~normal, "group_id"].unique()
    masks = mask_problems(frame, data)
    facts = {
        "group_in_one_split": in_one_split(frame, "group_id"),
        "image_in_one_split": in_one_split(frame, "sha256"),
        "trains_on_normal_group": ~(frame["split"].isin(TRAINING) & frame["group_id"].isin(defective_groups)),
        "kind_fits_label": normal == (frame["kind"] == "good"),
        "mask_present": mask_kept(frame),
        "mask_readable": masks != "unreadable",
        "mask_of_image_size": masks != "size",
        "mask_marks_something": masks != "empty",
        # `isin` takes ten times as long
        "has_statistics": statistics.index.get_indexer(pd.Index(frame["sha256"])) >= 0,
        "shows_something": ~normal | bounds.shows_something(frame, known["std"], normal & (frame["split"] == "train")),
    }
    return pd.concat([frame, pd.DataFrame(facts), _deviations(frame, known)], axis=1)


def of_classes(frame: pd.DataFrame, classes: Classes) -> pd.DataFrame:
    """One row per class of the manifest or of classes.yaml: where it is named and how many images it has."""
    present = set(frame["category"])
    names = sorted(present | set(classes.classes))
    normal, test = frame["label"] == "normal", frame["split"] == "test"

    def count(rows: pd.Series) -> list[int]:
        counts = frame.loc[rows, "category"].value_counts()
        return [int(counts.get(name, 0)) for name in names]

    return pd.DataFrame(
        {
            "category": names,
            "in_classes_file": [name in classes.classes for name in names],
            "in_manifest": [name in present for name in names],
            "training_normals": count(normal & frame["split"].isin(TRAINING)),
            "test_images": count(test),
            "test_normals": count(normal & test),
            "test_defects": count(~normal & test),
        }
    )


def split_sizes(frame: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Per class, then per split, the number of images."""
    counts = frame.groupby(["category", "split"]).size().reset_index(name="n")
    sizes: dict[str, dict[str, int]] = {}
    for category, split, count in zip(counts["category"], counts["split"], counts["n"], strict=True):
        sizes.setdefault(category, {})[split] = int(count)
    return sizes
