"""The report in a real browser, from a file and without a network, as a reader uses it."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from pvqae.core.layout import Layout
from pvqae.report.report import report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

EVIL = '"><script>document.title = "broken in"</script>.png'


@pytest.fixture
def address(make_class: Callable[..., Any], layout: Layout) -> str:
    """A report of two classes; every file of one has a hostile name."""
    made = make_class(kind="scratch")
    made.rows["path"] = pd.Series([f"raw/{number}{EVIL}" for number in range(len(made.rows))], index=made.rows.index)
    made.evaluate(layout.class_report("brick"), card={"threshold": 3.0}, pictures=2)
    make_class(kind='"><b>stain', seed=1).evaluate(layout.class_report("grass"), card={"threshold": 3.0}, pictures=2)
    report(layout)
    return (layout.reports / "index.html").as_uri()


@pytest.fixture
def opened(browser: "Browser", address: str) -> Iterator[Callable[..., "Page"]]:
    """Open the report; at the end nothing was complained of and nothing asked of a network."""
    said: list[str] = []
    asked: list[str] = []
    pages = []

    def open_page(**options: Any) -> "Page":
        page = browser.new_page(**options)
        pages.append(page)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert said == []
    assert [url for url in asked if url != address and not url.startswith("data:")] == []


def test_hostile_names_are_text(opened: Callable[..., "Page"]) -> None:
    page = opened()
    assert page.title() == "Defect detection: demo"
    assert page.locator("article code").first.text_content().endswith(EVIL)
    assert page.locator("article b, option b").count() == 0


def test_filters_leave_what_fits_and_count_it(opened: Callable[..., "Page"]) -> None:
    page = opened()
    visible = page.locator("article.shot:visible")
    assert visible.count() == 16
    page.locator("select[name=class]").select_option("=grass")
    assert visible.count() == 8
    page.locator("select[name=kind]").select_option('="><b>stain')
    assert visible.count() == 4
    assert page.locator("form.filters output").text_content() == "4 of 16 pictures"
    assert page.locator("option[value='=scratch']").text_content() == "scratch (0)"
    assert page.get_by_role("heading", name="Good images with the highest scores").count() == 0
    page.get_by_role("button", name="Show all").click()
    page.wait_for_function("document.querySelectorAll('article.shot:not([hidden])').length === 16")
    page.locator("a[data-only=grass]").click()
    assert visible.count() == 8


def test_a_picture_opens_large_by_keyboard_and_focus_comes_back(opened: Callable[..., "Page"]) -> None:
    page = opened()
    tiles, dialog = page.locator(".block .tiles"), page.locator("dialog")
    small = tiles.first.locator("img").first.bounding_box()
    tiles.first.focus()
    page.keyboard.press("Enter")
    assert dialog.is_visible()
    large = dialog.locator("img").first.bounding_box()
    assert small
    assert large
    assert large["width"] > 2 * small["width"]
    assert dialog.locator(".place").text_content() == "1 of 16"
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert tiles.first.evaluate("one => one === document.activeElement")
    tiles.first.click()
    page.keyboard.press("ArrowRight")
    assert dialog.locator(".place").text_content() == "2 of 16"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert dialog.locator(".place").text_content() == "16 of 16"
    page.get_by_role("button", name="Close").click()
    assert tiles.last.evaluate("one => one === document.activeElement")


def test_the_threshold_moves_by_keys_and_in_the_chart(opened: Callable[..., "Page"]) -> None:
    page = opened()
    figure = page.locator("[data-histogram]").first
    said, line = figure.locator("output"), figure.locator(".cut")
    before, place = said.text_content(), line.get_attribute("x1")
    figure.locator("input").focus()
    page.keyboard.press("Home")
    assert "0 of 10 defects (0.0 %) are missed" in (said.text_content() or "")
    page.keyboard.press("End")
    assert "0 of 12 good images (0.0 %) are stopped" in (said.text_content() or "")
    assert line.get_attribute("x1") != place
    box = figure.locator("svg").bounding_box()
    assert box
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert 300 < float(line.get_attribute("x1") or 0) < 340
    figure.get_by_role("button").click()
    assert (said.text_content(), line.get_attribute("x1")) == (before, place)


def test_a_finger_moves_the_threshold_on_a_phone_and_nothing_scrolls_sideways(opened: Callable[..., "Page"]) -> None:
    page = opened(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    figure = page.locator("[data-histogram]").first
    before = figure.locator("output").text_content()
    figure.locator("svg").tap()
    assert figure.locator("output").text_content() != before
    page.locator(".block .tiles").first.tap()
    assert page.locator("dialog").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_dark_by_the_system_and_by_the_button_for_this_tab_only(opened: Callable[..., "Page"]) -> None:
    def background(page: "Page") -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light, dark = opened(color_scheme="light"), opened(color_scheme="dark")
    colours = background(light), background(dark)
    assert colours[0] != colours[1]
    light.locator("#theme").click()
    assert background(light) == colours[1]
    light.reload()
    assert background(light) == colours[1]
    dark.locator("#theme").click()
    assert background(dark) == colours[0]
    assert background(opened(color_scheme="light")) == colours[0]


def test_without_scripts_all_is_shown(opened: Callable[..., "Page"]) -> None:
    page = opened(java_script_enabled=False)
    assert page.locator("article.shot:visible").count() == 16
    assert not page.locator("form.filters").is_visible()
    assert "At the calibrated threshold" in (page.locator("output").first.text_content() or "")
