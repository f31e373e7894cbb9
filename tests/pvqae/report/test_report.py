"""The merged report: its schema, its means, and a page that stands alone and escapes what users name."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pandas as pd
import pytest

from pvqae.core.errors import DataError
from pvqae.core.layout import Layout
from pvqae.report import gallery, page
from pvqae.report.report import _mean as mean
from pvqae.report.report import report
from pvqae.samples import classes

Make = Callable[..., Any]
EVIL = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Elements, attribute values, and the text a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture
def evaluated(make_class: Make, layout: Layout) -> Callable[..., None]:
    """Evaluate one class of the workspace."""

    def run(name: str, card: dict[str, Any] | None = None, health: dict[str, Any] | None = None, **made: Any) -> None:
        make_class(**made).evaluate(layout.class_report(name), card=card or {}, health=health or {}, pictures=2)

    return run


def _page(layout: Layout) -> Page:
    return Page((layout.reports / "index.html").read_text("utf-8"))


def test_metrics_json_follows_the_schema_and_means_leave_nulls_out(evaluated: Any, layout: Layout) -> None:
    evaluated("brick", seed=1)
    evaluated("grass", seed=2, masked=False)
    result = report(layout)
    assert json.loads((layout.reports / "metrics.json").read_text()) == result
    assert list(result) == ["dataset", "protocol", "classes", "mean"]
    assert (result["dataset"], result["protocol"], list(result["classes"])) == ("demo", "grouped", ["brick", "grass"])
    brick, grass = result["classes"].values()
    assert result["mean"]["image_auroc"] == pytest.approx((brick["image_auroc"] + grass["image_auroc"]) / 2)
    assert result["mean"]["pixel_auroc"] == brick["pixel_auroc"]
    assert result["mean"]["latency_ms"] is None
    assert set(brick) - set(result["mean"]) == {"fusion", "kinds", "level_shares"}


def test_mean_of_figures() -> None:
    classes = [{"a": 1.0, "b": None, "c": "x", "d": None, "e": [1]}, {"a": 2, "b": 4, "c": "y", "d": None, "e": [2]}]
    assert mean(classes) == {"a": 1.5, "b": 4.0, "d": None}


def test_tables_name_the_class(evaluated: Any, layout: Layout) -> None:
    evaluated("brick", seed=1)
    evaluated("grass", seed=2, normals=5)
    report(layout)
    images = pd.read_csv(layout.reports / "images.csv")
    assert images["class"].value_counts().to_dict() == {"brick": 22, "grass": 15}
    assert list(images.columns[:3]) == ["class", "sample_id", "path"]
    own = pd.read_csv(layout.class_report("brick") / "images.csv")
    pd.testing.assert_frame_equal(images[images["class"] == "brick"].drop(columns="class"), own)
    curve = pd.read_csv(layout.reports / "roc.csv")
    assert list(curve.columns) == ["class", "false_positive_rate", "true_positive_rate"]
    assert set(curve["class"]) == {"brick", "grass"}


def test_a_class_without_evaluation_is_named_with_its_repair(evaluated: Any, layout: Layout) -> None:
    evaluated("brick")
    assert report(layout)["not_evaluated"] == ["grass"]
    text = _page(layout).text
    assert "before you trust the figures" in text
    assert "grass: This class has no figures" in text
    (layout.class_report("brick") / "metrics.json").unlink()
    with pytest.raises(DataError, match="dvc repro -s evaluate@brick"):
        report(layout)


def test_a_report_on_no_class_is_an_error(layout: Layout) -> None:
    with pytest.raises(DataError, match="dvc repro -s evaluate@brick"):
        report(layout)
    assert not (layout.reports / "index.html").exists()


def test_the_page_stands_alone_and_is_accessible(evaluated: Any, layout: Layout) -> None:
    evaluated("brick", seed=1)
    evaluated("grass", seed=2)
    report(layout)
    text = (layout.reports / "index.html").read_text("utf-8")
    html = _page(layout)
    assert not re.search(r"https?:|url\(|@import|[\"']//", re.sub(r"data:[\w/;,+=]+", "", text))
    pictures = html.all("img")
    assert len(pictures) == 2 * (2 * 2 * 4 + 2 * 2 * 5)  # classes, groups x pictures x files of normals and of defects
    assert all(one["src"].startswith("data:image/") and one["alt"] for one in pictures)
    assert all("scope" in one for one in html.all("th"))
    assert all(one["aria-label"] for one in html.all("svg"))
    assert all(one["aria-label"] for one in html.all("input"))
    targets = {attributes["id"] for _, attributes in html.tags if "id" in attributes}
    assert {one["href"][1:] for one in html.all("a") if one["href"].startswith("#")} <= targets
    assert "prefers-color-scheme: dark" in text
    assert "demo, synthetic, no quality claim" in html.text
    assert len(text) < 1_000_000


def test_names_of_users_are_escaped_everywhere(evaluated: Any, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes, "NAME", ".*")  # the reader refuses such a class; the page does not rely on it
    members, network = ["a & \"b' <i>"], "models/demo/networks/all"
    graph = {
        "dataset": "demo",
        "networks": {"all": {"classes": members}},
        "priors": {"all": {"classes": members, "allocations": network}},
        "classes": {members[0]: {"network": "all", "prior": "all"}},
    }
    layout.classes_file.write_text(json.dumps(graph))
    evaluated("a & \"b' <i>", kind=f"{EVIL.replace('/', '∕')}\"'>", card={"warnings": [EVIL], "rule": EVIL})
    report(layout)
    html = _page(layout)
    assert len(html.all("script")) == 2  # the histogram's numbers and the page's own
    assert not html.all("i") or all(set(one) <= {"style"} for one in html.all("i"))
    assert EVIL in html.text
    assert "a & \"b' <i>" in html.text
    assert any(EVIL.replace("/", "∕") in one["alt"] for one in html.all("img"))
    assert not {name for _, attributes in html.tags for name in attributes if name.startswith("on")}


def test_warnings_come_before_the_figures(evaluated: Any, layout: Layout) -> None:
    health = {"warnings": ["collapse: one level takes 99 % of the cells"]}
    evaluated("brick", health=health, card={"threshold": 0.0, "warnings": ["too few normals"]})
    evaluated("grass", card={"threshold": 1.7})
    report(layout)
    html = _page(layout)
    assert "3 warnings" in html.text
    for text in ("collapse: one level takes 99 %", "too few normals", "100.0 % of the good test images raise an alarm"):
        assert 0 < html.text.index(text) < html.text.index("pixel AUROC")


@pytest.mark.parametrize(("threshold", "alarms", "warned"), [(1.7, 3, False), (1.0, 12, True)])
def test_chance_alone_does_not_warn_of_false_alarms(
    evaluated: Any, layout: Layout, threshold: float, alarms: int, warned: bool
) -> None:
    for name in ("brick", "grass"):
        evaluated(name, card={"threshold": threshold})
    rate = report(layout)["classes"]["brick"]["false_alarm_rate"]
    assert rate == alarms / 12 > 0.17  # above the upper end of the card's interval
    assert ("raise an alarm" in _page(layout).text) == warned


@pytest.mark.parametrize(("threshold", "warned"), [(1.7, False), (100.0, True), (7199.0, True)])
def test_a_sound_report_has_no_warning_box_and_one_that_finds_nothing_has(
    evaluated: Any, layout: Layout, threshold: float, warned: bool
) -> None:
    for name in ("brick", "grass"):
        evaluated(name, card={"threshold": threshold})
    report(layout)
    page = _page(layout)
    assert bool([one for one in page.all("div") if "warning" in (one.get("class") or "")]) == warned
    assert ("defects of the test are missed" in page.text) == warned


STOPPED, MISSED = "2.5 % of the good images are stopped (1 of 40)", "20.0 % of the defects are missed (10 of 50)"
NOT_JUDGED = "Detection is not judged: that needs good and defective test images of a class."


@pytest.mark.parametrize(
    ("normal", "defect", "verdict"),
    [
        (40, 50, f"At the calibrated thresholds, {STOPPED} and {MISSED}."),
        (40, 0, f"At the calibrated thresholds, {STOPPED}. {NOT_JUDGED}"),
        (0, 50, f"At the calibrated thresholds, {MISSED}. {NOT_JUDGED}"),
        (0, 0, f"There are no test images. {NOT_JUDGED}"),
    ],
)
def test_the_verdict_is_a_sentence_with_numbers(normal: int, defect: int, verdict: str) -> None:
    one = {"n_normal": normal, "n_defect": defect, "false_alarm_rate": 1 / 40, "miss_rate": 0.2}
    one |= {"image_auroc": 0.8321 if normal and defect else None}
    metrics = {"classes": {"grass": one}, "mean": {"image_auroc": one["image_auroc"]}}
    assert page._verdict(metrics) == verdict
    if normal and defect:
        two = {"classes": {"brick": one | {"image_auroc": 0.9}, "grass": one}, "mean": {"image_auroc": 0.86}}
        assert page._verdict(two).endswith(" The weakest class is grass, with an image AUROC of 0.832.")


def test_good_images_alone_and_random_splits_are_said_plainly(evaluated: Any, layout: Layout) -> None:
    (layout.root / "params.yaml").write_text("data: {name: demo, source: folder, protocol: random}\n")
    for name in ("brick", "grass"):
        evaluated(name, defects=0)
    assert report(layout)["protocol"] == "random"
    html = _page(layout)
    assert "Detection is not judged" in html.text
    assert "the grouped split is the honest one" in html.text
    assert "no quality claim" not in html.text


def _shots(layout: Layout) -> list[dict[str, str | None]]:
    return [one for one in _page(layout).all("article") if "shot" in (one["class"] or "")]


def test_pictures_stay_within_a_budget_of_bytes(
    evaluated: Any, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("brick", "grass"):
        evaluated(name)
    report(layout)
    assert len(_shots(layout)) == 2 * 2 * 4  # classes, groups, pictures
    monkeypatch.setattr(gallery.choose, "__defaults__", (25_000,))
    report(layout)
    kept = _shots(layout)
    assert 0 < len(kept) < 16
    assert {one["data-class"] for one in kept} == {"brick", "grass"}  # not all of one class
    assert f"{len(kept)} of the 16 pictures" in _page(layout).text
    assert sum(len(one["src"] or "") for one in _page(layout).all("img")) < 25_000 * 1.4


def test_filters_name_every_class_kind_and_outcome_with_its_number(evaluated: Any, layout: Layout) -> None:
    evaluated("brick", kind="scratch")
    evaluated("grass", kind="stain")
    report(layout)
    options = {one["value"]: one["data-text"] for one in _page(layout).all("option")}
    assert {"=brick", "=grass", "=scratch", "=stain", "=good", "=hit", "=correct"} <= set(options)
    assert "scratch (4)" in _page(layout).text


def test_the_card_shows_the_smallest_defect_where_it_is_known(evaluated: Any, layout: Layout) -> None:
    evaluated("brick", card={"smallest_defect": {"pixels": 12.54, "apart": 20.0, "image": [640, 480], "scale": 2.0}})
    evaluated("grass")
    report(layout)
    text = _page(layout).text
    assert text.count("smallest defect") == 1
    assert "about 12.5 pixels of 640 x 480" in text


def test_the_report_of_the_same_classes_has_the_same_bytes(evaluated: Any, layout: Layout) -> None:
    for name in ("brick", "grass"):
        evaluated(name)
    report(layout)
    files = ("index.html", "metrics.json", "images.csv", "roc.csv")
    before = [(layout.reports / name).read_bytes() for name in files]
    report(layout)
    assert [(layout.reports / name).read_bytes() for name in files] == before


@pytest.mark.parametrize(("value", "text"), [(None, "n/a"), (1.0, "1.000"), (0.99996, "0.999"), (0.9712, "0.971")])
def test_a_figure_is_never_rounded_up_to_perfect(value: float | None, text: str) -> None:
    assert page._figure(value) == text
