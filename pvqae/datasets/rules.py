"""What is expected of a dataset, as data: one `Rule` per expectation, in words and with the repair.

What a check found: told to a person as a message, kept for programs as validation.json.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pvqae.datasets import facts
from pvqae.samples import classes
from pvqae.samples.images import SIDES
from pvqae.samples.manifest import COLUMNS, LABELS, NUMBERS, SPLITS

# Relative, POSIX, no part starts with a dot: a manifest from elsewhere must not name other files of this machine.
# (No lookahead and no groups: pandas hands expressions to RE2, which has none, and warns of the others.)
_BELOW = r"(?:/[^./\\][^/\\]*)+$"
_RELATIVE = f"^(?:raw|gate){_BELOW}"
# Anything but white space, its characters listed: pandas would leave \S to Python, a million times.
_PRESENT = "[^\x00-\x20\x7f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"


@dataclass(frozen=True)
class Rule:
    """`kind` is a Great Expectations class, `kwargs` are its arguments; a `warning` is told but stops nothing.

    A failure holds back the classes of the rows against it, or stops the `whole` dataset.
    """

    name: str
    kind: str
    words: str
    repair: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    warning: bool = False
    whole: bool = False


def _holds(name: str, words: str, repair: str, **more: Any) -> Rule:
    return Rule(name, "ExpectColumnValuesToBeInSet", words, repair, {"column": name, "value_set": [True]}, **more)


def _silent(name: str, words: str, repair: str, **more: Any) -> Rule:
    """Expect "" in a column that otherwise says what is wrong."""
    return Rule(name, "ExpectColumnValuesToBeInSet", words, repair, {"column": name, "value_set": [""]}, **more)


def _matches(name: str, column: str, regex: str, words: str, repair: str) -> Rule:
    return Rule(name, "ExpectColumnValuesToMatchRegex", words, repair, {"column": column, "regex": regex})


def _unique(column: str, repair: str) -> Rule:
    words = f"every {column} occurs once"
    return Rule(f"{column}_unique", "ExpectColumnValuesToBeUnique", words, repair, {"column": column})


def _between(column: str, low: float | None, high: float | None, words: str, repair: str, **more: Any) -> Rule:
    limits = {"column": column, "min_value": low, "max_value": high}
    return Rule(f"{column}_in_range", "ExpectColumnValuesToBeBetween", words, repair, limits, **more)


def of_manifest() -> list[Rule]:
    """Return what is expected of the manifest's text, before anything relies on its columns and types."""
    rebuild = "delete data/manifest.csv and build it again with `dvc repro manifest`"
    rename = "rename the files or folders in the dataset, then run `python -m flows data add NAME ROOT`"
    columns = {"column_list": list(COLUMNS)}
    sets = {"split": SPLITS, "label": LABELS}
    found = [
        Rule("columns", "ExpectTableColumnsToMatchOrderedList", "the contract's columns in order", rebuild, columns),
        Rule("rows", "ExpectTableRowCountToBeBetween", "at least one image", rebuild, {"min_value": 1}),
        _unique("sample_id", rebuild),
        _unique("path", rebuild),
        *(
            _matches(f"{name}_present", name, _PRESENT, f"every image has a {name}", rebuild)
            for name in ("sample_id", "group_id", "kind")
        ),
        _matches("path_relative", "path", _RELATIVE, "every path is below data/raw or data/gate", rebuild),
        _matches(
            "mask_path_relative",
            "mask_path",
            f"^$|^(?:raw|gate|masks){_BELOW}",
            "every mask is below these too, or below data/masks, or there is none",
            rebuild,
        ),
        _matches("sha256_format", "sha256", r"^[0-9a-f]{64}$", "every hash has 64 hexadecimal digits", rebuild),
        _matches("category_name", "category", classes.NAME, f"class names of {classes.NAME_WORDS}", rename),
        *(
            _matches(f"{name}_is_number", name, r"^\d{1,9}$", f"every {name} is a whole number", rebuild)
            for name in NUMBERS
        ),
        *(
            Rule(
                f"{name}_known",
                "ExpectColumnValuesToBeInSet",
                f"every {name} is one of {', '.join(known)}",
                rebuild,
                {"column": name, "value_set": list(known)},
            )
            for name, known in sets.items()
        ),
    ]
    return [replace(rule, whole=True) for rule in found]


def of_images() -> list[Rule]:
    """Return what is expected of the rows with the facts of `pvqae.datasets.facts`."""
    again = "then run `python -m flows data add NAME ROOT`"
    rebuild = "delete data/manifest.csv and data/statistics.csv and build them again with `dvc repro manifest`"
    export = f"export these images again as 8 or 16 bit grey or RGB, {again}"
    sides = f"cut what is larger into parts, enlarge or remove what is smaller, {again}"
    remove = f"remove the copies from the dataset's folder, {again}"
    masks = f"correct the files in the dataset's folder, {again}"
    look = f"look at these images; restore or remove the broken ones, {again}"
    limit = facts.LIMIT
    deviates = "within {} robust sigmas of its class's training normals".format(f"{limit:g}")
    return [
        _between("width", *SIDES, "{} to {} pixels wide".format(*SIDES), sides),
        _between("height", *SIDES, "{} to {} pixels high".format(*SIDES), sides),
        _between("channels", 1, 4, "1 to 4 channels", export),
        _between("bit_depth", 8, 16, "8 to 16 bit", export),
        _holds("group_in_one_split", "no group is divided between splits", rebuild),
        _holds("image_in_one_split", "no image has a copy in another split", remove),
        _holds("trains_on_normal_group", "no group with a defect in train or calibrate", rebuild),
        _holds("kind_fits_label", "kind is good for normals and for nothing else", rebuild),
        _holds("mask_present", "all or none of a class's defects have a mask", f"add the missing masks, {again}"),
        _silent("mask_readable", "every mask is an image that can be read", masks),
        _silent("mask_of_image_size", "every mask has the size of its image", masks),
        _silent("mask_marks_something", "every mask marks at least one pixel", masks),
        _silent("mask_leaves_something", "no mask marks every pixel", masks, warning=True),
        _holds("not_inverted", "no image looks like a negative of its class", look, warning=True),
        _holds("has_statistics", "every image was measured", rebuild),
        _holds("shows_something", "no normal is blank", look),
        *(_between(f"{name}_deviation", -limit, limit, f"{name} is {deviates}", look) for name in facts.STATISTICS),
        # Not an error: the held-out normals teach nothing, and an odd one among them may be there to be judged.
        *(
            _between(f"{name}_deviation_held_out", -limit, limit, f"{name} is {deviates}", look, warning=True)
            for name in facts.STATISTICS
        ),
    ]


def _promised(least: int) -> Rule:
    words = f"at least {least} normals to train with, of which a false-alarm rate can be promised"
    rule = _between("training_normals", least, None, words, "add images of good parts", warning=True)
    return replace(rule, name="promised_rate")


def of_classes(min_normals: int, judged: bool = True, promise_from: int = 0) -> list[Rule]:
    """Return what is expected of the table of classes of `pvqae.datasets.facts`; `judged`: also of test images.

    Of a class of fewer normals than `promise_from` is told that no rate will be promised.
    """
    add = "bring the dataset in with `python -m flows data add NAME ROOT`, which writes data/classes.yaml"
    again = "see data/quarantine.csv for what was left out; repair it, then run `python -m flows data add NAME ROOT`"
    more = "add images of good parts, or lower data.min_normals or data.shares"
    camera = "look whether one camera and one export made these images; replace the others"
    some = "add images to the dataset's test folder, or raise data.shares.test"
    other = "add such images to the dataset's test folder, or leave it: the metrics that need them will be null"
    of_tests = [
        _between("test_images", 1, None, "at least one image to test with", some),
        _between("test_normals", 1, None, "normals to test with", other, warning=True),
        _between("test_defects", 1, None, "defects to test with", other, warning=True),
    ]
    return [
        _holds("in_classes_file", "every class of the manifest is in data/classes.yaml", add, whole=True),
        _holds("in_manifest", "every class of data/classes.yaml has images", again),
        _between("training_normals", min_normals, None, f"at least {min_normals} normals to train with", more),
        _promised(promise_from),
        _silent("range_used", "values over the range of the files", "set image.bits in params.yaml, then run again"),
        _silent("range_mostly_used", "values over most of the range of the files", camera, warning=True),
        _silent("shade", "pictures that are neither black nor white", camera, warning=True),
        _silent("one_bit_depth", "images of one bit depth", camera, warning=True),
        _silent("one_channel_count", "images of one number of channels", camera, warning=True),
        *(of_tests if judged else ()),
    ]


@dataclass(frozen=True)
class Outcome:
    """What became of a rule: how many rows are against it, in `rows` the first of them, and the classes of all."""

    rule: Rule
    success: bool
    unexpected: int
    rows: tuple[str, ...]
    categories: frozenset[str] = frozenset()

    def line(self) -> str:
        """Return the expectation in words with the rows against it."""
        more = self.unexpected - len(self.rows)
        listed = ", ".join(self.rows) + (f" and {more} more" if more > 0 else "")
        return f"{self.rule.name}: expected {self.rule.words}; {self.unexpected} not: {listed}"


def failed(outcomes: Sequence[Outcome], *, warning: bool = False) -> list[Outcome]:
    """Return the outcomes that stop everything, or those that only warn."""
    return [outcome for outcome in outcomes if not outcome.success and outcome.rule.warning == warning]


@dataclass(frozen=True)
class Summary:
    """A checked dataset: its size, images per class and split, what is worth knowing, and the page to open. `files`:
    how many of its files are used, in quarantine and ignored; together they are all. `held_back`: the classes that
    can't be trained as they are, with the reason.

    `rows` are the images of the dataset and the `synthetic` defects that were drawn on normals of the gate; in
    `classes` are the images alone.
    """

    rows: int
    classes: dict[str, dict[str, int]]
    quarantined: int
    files: dict[str, int]
    warnings: tuple[str, ...]
    docs: Path
    held_back: dict[str, str] = field(default_factory=dict)
    synthetic: int = 0

    def __str__(self) -> str:
        counts = "; ".join(f"{name} {_listed(parts)}" for name, parts in self.classes.items())
        held = "" if self.held_back else " hold every expectation"
        said = f"{self._size}{held}: {counts}. Files: {_listed(self.files)}. {self.docs}"
        out = [f"class {name} is held back:\n  {reason}" for name, reason in self.held_back.items()]
        return "\n".join([said, *out, *(f"warning: {text}" for text in self.warnings)])

    @property
    def _size(self) -> str:
        drawn = f" and {self.synthetic} synthetic defects of the gate" if self.synthetic else ""
        return f"{self.rows - self.synthetic} images{drawn}"

    def message(self, outcomes: Sequence[Outcome]) -> str:
        """Return the verdict in words, with the rows and the repair of each failed expectation."""
        stops = failed(outcomes)
        held = f"{len(outcomes) - len(stops)} of {len(outcomes)} expectations hold for {self._size}"
        lines = [f"  {outcome.line()}\n    repair: {outcome.rule.repair}" for outcome in stops]
        notes = [f"  warning: {text}" for text in self.warnings]
        out = f"held back: {', '.join(self.held_back)}" if self.held_back else "nothing is trained"
        return "\n".join([f"{held}; {out}:" if stops else held, *lines, *notes])

    def report(self, outcomes: Sequence[Outcome]) -> str:
        """Return the text of validation.json."""
        expectations = [
            {"name": o.rule.name, "success": o.success, "unexpected": o.unexpected, "warning": o.rule.warning}
            for o in outcomes
        ]
        values = {
            "success": not failed(outcomes),
            "expectations": expectations,
            "rows": self.rows,
            "synthetic": self.synthetic,
            "classes": self.classes,
            "quarantined": self.quarantined,
            "files": self.files,
            "warnings": self.warnings,
            "held_back": self.held_back,
        }
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def _listed(parts: dict[str, int]) -> str:
    return ", ".join(f"{part} {count}" for part, count in parts.items())
