"""Check a dataset with Great Expectations before anything trains on it: the verb `pvqae data check`.

The only module that imports great_expectations, and only when it runs: the import takes 2.5 to 6 s.

The page around Great Expectations' sections: opens without a network, runs nothing, changes only with the data.

Its own page loads styles and scripts from five public servers, links to pages that we don't have and carries the time.
"""

import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from pvqae.core.config import Params
from pvqae.core.errors import DataError, ValidationFailed
from pvqae.core.files import write_text
from pvqae.core.layout import Layout
from pvqae.core.progress import working
from pvqae.datasets import facts, leftover, rules
from pvqae.datasets.leftover import Left
from pvqae.datasets.rules import Outcome, Summary
from pvqae.samples import classes, manifest

_SHOWN = 10  # rows that a message and a page name per expectation
# Columns of few different values: as categories they cost a byte or two a row. A million rows then fit.
_REPEATED = ("category", "split", "label", "kind", "mask_path", *manifest.NUMBERS, "source", "captured_at")
_MEASURED = ("sha256", *facts.STATISTICS, "lowest", "highest", "skew")
_Checked = tuple[Outcome, Any]  # with Great Expectations' own result, which the page is rendered from


def check(layout: Layout, params: Params, judged: bool = True) -> Summary:
    """Run every expectation over data/manifest.csv and write data/rows, data_docs/index.html and validation.json.

    `judged`: whether there must be images to test with, too.

    A class with rows that fail is held back, together with those that share its network or prior: data/rows has none
    of theirs, the summary names them, and the other classes go on.

    Raises `ValidationFailed`, naming expectation, rows and repair, when the manifest itself is wrong or no class is
    left: the two reports are then written all the same, and data/rows does not exist. Raises `ConfigError` for an
    unusable classes.yaml, `DataError` for a missing or unreadable table.
    """
    shutil.rmtree(layout.rows, ignore_errors=True)  # nothing may train on rows that no longer pass
    known = classes.read(layout.classes_file, params.data.name)
    frame = _table(layout.manifest, _REPEATED)
    with working("Great Expectations checks the manifest"):
        checked = _run("manifest", frame, rules.of_manifest(), ["sample_id", "path"])
    frame = frame.astype({name: "str" for name in _REPEATED if name in frame.columns})
    if not rules.failed([outcome for outcome, _ in checked]):
        frame = frame.astype(dict.fromkeys(manifest.NUMBERS, "int64"))
        with working("Great Expectations checks images and classes"):
            checked += _run_typed(frame, _statistics(layout.statistics), known, layout.data, params, judged)
    outcomes = [outcome for outcome, _ in checked]
    stops = rules.failed(outcomes)
    held = known.sharing(name for outcome in stops for name in outcome.categories)
    left = not any(outcome.rule.whole for outcome in stops) and any(name not in held for name in known.classes)
    summary = _summary(frame, outcomes, len(_table(layout.quarantine)), _ignored(layout.ignored), layout)
    summary = replace(summary, held_back=_held_back(outcomes, held) if left else {})
    message = summary.message(outcomes)
    write_text(summary.docs, _page(params.data.name, message, checked))
    write_text(layout.reports / "validation.json", summary.report(outcomes))
    if not left:
        raise ValidationFailed(f"{message}\nOpen {summary.docs}")
    manifest.write_rows(frame[~frame["category"].isin(held)], known, layout)
    return summary


def _table(path: Path, repeated: Sequence[str] = ()) -> pd.DataFrame:
    """Read a CSV file as text, that of the columns `repeated` as categories: names and types are still to be checked.

    Read as categories at once, pandas would make numbers of a class 01.
    """
    repair = "delete it and build it again with `dvc repro manifest`"
    try:
        table: pd.DataFrame = pd.read_csv(path, dtype="str", keep_default_na=False, encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: expected a table, found no file; build it with `dvc repro manifest`") from None
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise DataError(f"{path}: expected a UTF-8 table, found {error}; {repair}") from None
    return table.astype({name: "category" for name in repeated if name in table.columns})


def _statistics(path: Path) -> pd.DataFrame:
    """Return data/statistics.csv as numbers, indexed by sha256: copies of an image have the same ones."""
    table = _table(path)
    if not set(_MEASURED) <= set(table.columns):
        expected, found = ", ".join(_MEASURED), ", ".join(table.columns)
        raise DataError(f"{path}: expected the columns {expected}; found {found}; delete it and run `dvc repro`")
    table = table.drop_duplicates("sha256").set_index("sha256")
    return pd.DataFrame({str(name): pd.to_numeric(table[name], errors="coerce") for name in table})


def _run_typed(
    frame: pd.DataFrame,
    statistics: pd.DataFrame,
    known: classes.Classes,
    data: Path,
    params: Params,
    judged: bool,
) -> list[_Checked]:
    images = facts.of_images(frame, statistics, data)
    table = facts.of_classes(frame, known, statistics, params.image.bits)
    least, promised = params.data.min_normals, params.calibration.promise_from
    return [
        *_run("images", images, rules.of_images(), ["sample_id", "path"]),
        *_run("classes", table, rules.of_classes(least, judged, promised), ["category"]),
    ]


def great_expectations() -> tuple[Any, Any]:
    """Return the library and its expectations. Raises `ImportError` where the extra `validation` is not installed."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read at import: nothing about a dataset leaves the machine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it imports sre_constants
        import great_expectations as gx
        from great_expectations import expectations
    return gx, expectations


def _run(table: str, frame: pd.DataFrame, suite: Sequence[rules.Rule], keys: list[str]) -> list[_Checked]:
    """Run the rules whose column the table has; a missing column is what the rule on columns finds.

    Great Expectations copies its table for every rule and names rows by their position, so it gets no column that no
    rule looks at.
    """
    gx, expectations = great_expectations()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("data").add_dataframe_asset(table)
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch(
        batch_parameters={"dataframe": _seen(frame, suite)}
    )
    usable = [rule for rule in suite if rule.kwargs.get("column") in (None, *frame.columns)]
    expected = gx.ExpectationSuite(name=table, expectations=[_expectation(expectations, rule) for rule in usable])
    form = {"result_format": "COMPLETE", "partial_unexpected_count": _SHOWN}
    results = {r.expectation_config.meta["rule"]: r for r in batch.validate(expected, result_format=form).results}
    return [(_outcome(rule, results[rule.name], frame, keys), results[rule.name]) for rule in usable]


def _seen(frame: pd.DataFrame, suite: Sequence[rules.Rule]) -> pd.DataFrame:
    columns = {rule.kwargs.get("column") for rule in suite}
    chosen = frame if None in columns else frame[[name for name in frame.columns if name in columns]]
    return chosen.reset_index(drop=True)


def _expectation(expectations: Any, rule: rules.Rule) -> Any:
    severity = "warning" if rule.warning else "critical"
    words = f"{rule.words} (a warning)" if rule.warning else rule.words
    return getattr(expectations, rule.kind)(
        **rule.kwargs, description=words, severity=severity, meta={"rule": rule.name}
    )


def _outcome(rule: rules.Rule, result: Any, frame: pd.DataFrame, keys: Sequence[str]) -> Outcome:
    found = result.result
    if not result.success and not found:  # an expectation that could not run must not read like a finding
        raise RuntimeError(f"expectation {rule.name} could not run: {result.exception_info}")
    named = [key for key in keys if key in frame.columns]
    texts = [_named(frame.iloc[row], named, rule) for row in found.get("partial_unexpected_index_list") or []]
    if not result.success and not texts:
        texts = [f"found {found.get('observed_value')}"]
    against = frame.iloc[found.get("unexpected_index_list") or []]
    categories = frozenset(against["category"]) if "category" in frame.columns else frozenset()
    count = int(found.get("unexpected_count", not result.success))
    return Outcome(rule, bool(result.success), count, tuple(texts), categories)


def _named(row: "pd.Series[Any]", keys: Sequence[str], rule: rules.Rule) -> str:
    """Return `sample_id (path)`, and the value where it says more than that a fact does not hold."""
    name, *more = (str(row[key]) for key in keys)
    text = f"{name} ({more[0]})" if more else name
    column = rule.kwargs["column"]
    return text if column in keys or rule.kwargs.get("value_set") == [True] else f"{text}: {row[column]}"


def _ignored(path: Path) -> list[Left]:
    table = _table(path)
    if list(table.columns) != ["path", "kind", "reason"]:
        found = ", ".join(table.columns)
        raise DataError(f"{path}: expected the columns path, kind, reason; found {found}; delete it, run `dvc repro`")
    return [Left(*row) for row in table.itertuples(index=False)]


def _summary(
    frame: pd.DataFrame, outcomes: Sequence[Outcome], quarantined: int, ignored: Sequence[Left], layout: Layout
) -> Summary:
    told = [outcome.line() for outcome in rules.failed(outcomes, warning=True)]
    if quarantined:
        told.append(f"{quarantined} files were left out, for the reasons in data/quarantine.csv")
    told += leftover.told(ignored)
    drawn = frame["path"].str.startswith("gate/") if "path" in frame.columns else pd.Series(False, frame.index)
    sizes = _split_sizes(frame[~drawn]) if {"category", "split"} <= set(frame.columns) else {}
    names = [frame[column] for column in ("path", "mask_path") if column in frame.columns]
    used = sum(series[series.str.startswith("raw/")].nunique() for series in names)
    files = {"used": used, "in quarantine": quarantined, "ignored": len(ignored)}
    docs = layout.reports / "data_docs" / "index.html"
    return Summary(len(frame), sizes, quarantined, files, tuple(told), docs, synthetic=int(drawn.sum()))


def _split_sizes(frame: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Return per class, then per split, the number of images."""
    counts = frame.groupby(["category", "split"]).size().reset_index(name="n")
    sizes: dict[str, dict[str, int]] = {}
    for category, split, count in zip(counts["category"], counts["split"], counts["n"], strict=True):
        sizes.setdefault(category, {})[split] = int(count)
    return sizes


def _held_back(outcomes: Sequence[Outcome], names: set[str]) -> dict[str, str]:
    """Return, for each class of `names`, the failed expectations of its own rows with their repairs."""
    stops = rules.failed(outcomes)
    found = {}
    for name in sorted(names):
        own = [f"\n  {one.line()}\n    repair: {one.rule.repair}" for one in stops if name in one.categories]
        found[name] = "".join(own).strip() or "it shares its network or prior with a class that is"
    return found


def _page(dataset: str, message: str, checked: Sequence[_Checked]) -> str:
    """Return Data Docs: every expectation, by column, with the rows against it."""
    from great_expectations.core import ExpectationSuiteValidationResult
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view.view import DefaultJinjaSectionView

    results = [_shown(outcome, result) for outcome, result in checked]
    suite = ExpectationSuiteValidationResult(success=True, results=results, suite_name=dataset)
    _, *sections = ValidationResultsPageRenderer().render(suite).to_json_dict()["sections"]
    view: Any = DefaultJinjaSectionView()
    rendered = [view.render({"section": part, "section_loop": {"index": i}}) for i, part in enumerate(sections)]
    return _html(dataset, message, rendered)


def _shown(outcome: Outcome, result: Any) -> Any:
    """Return the result with our names of the rows as its unexpected values: escaped, since tables are printed as they
    are.
    """
    if "element_count" not in result.result:  # about the table, not its rows
        result.result = {"observed_value": escape(str(result.result["observed_value"]))}
        return result
    kept = {name: result.result[name] for name in ("element_count", "unexpected_count", "unexpected_percent")}
    result.result = kept | {"partial_unexpected_list": [escape(row) for row in outcome.rows]}
    return result


# Whatever a file's name may contain, a browser neither runs a script nor asks a server with this policy.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Data checks of {dataset}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; margin: .5rem 0 }}
td, th {{ border: 1px solid #ccc; padding: .3rem .6rem; vertical-align: top; text-align: left }}
pre {{ white-space: pre-wrap }}
h5 {{ font-size: 1.1rem; margin: 1.5rem 0 .3rem }}
.fa-check-circle::before {{ content: "\\2714"; color: #0a7d33 }}
.fa-exclamation-triangle::before {{ content: "\\26A0"; color: #9a6700 }}
.fa-times::before {{ content: "\\2718"; color: #b00020 }}
</style>
</head>
<body>
<h1>Data checks of {dataset}</h1>
<pre>{message}</pre>
{sections}
</body>
</html>
"""


def _html(dataset: str, message: str, sections: Sequence[str]) -> str:
    """Return one HTML document: `message` is text, `sections` are HTML."""
    return _PAGE.format(dataset=escape(dataset), message=escape(message), sections="\n".join(sections))
