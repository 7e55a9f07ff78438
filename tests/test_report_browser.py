"""The page in a real browser: no complaint of axe or the console, nothing wider than the window, usable by keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import made_runs
from conftest import Finished, barriers, in_a_browser
from topwork import report
from topwork.report import judged

pytestmark = in_a_browser

DESKTOP, PHONE = 1280, 390
PAPER = 718  # px of an A4 page between margins of 10 mm
MADE: dict[str, dict[str, Any]] = {
    "2 classes": {"classes": ["ants", "bees"], "images": 60},
    "17 classes": {"classes": made_runs.names(17, 11), "images": 200},
    "40 classes": {"classes": made_runs.names(40, 18), "images": 200},
    "200 classes of 30 letters": {"classes": made_runs.names(200, 30), "images": 800},
    "several labels": {"classes": made_runs.names(6, 12), "images": 80, "several": True},
}

Opened = Callable[..., Any]


@pytest.fixture(scope="module")
def drawn(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The page of a made run, by its name; each is made once."""
    pages: dict[str, Path] = {"a real run": finished.run.path / "report.html"}

    def of(name: str) -> Path:
        if name not in pages:
            run = made_runs.make(finished.run.record, tmp_path_factory.mktemp("made"), **MADE[name])
            pages[name] = report.write(run)
        return pages[name]

    return of


@pytest.fixture
def opened(browser: Any, drawn: Callable[[str], Path]) -> Iterator[Opened]:
    """Opens a page; at the end, nothing may have been complained of, and nothing asked for."""
    context = browser.new_context()
    complaints: list[str] = []

    def page(name: str, width: int = DESKTOP, scheme: str = "light") -> Any:
        found = context.new_page()
        found.set_viewport_size({"width": width, "height": 900})
        found.emulate_media(color_scheme=scheme)
        found.on("console", lambda m: complaints.append(m.text))
        found.on("pageerror", lambda e: complaints.append(str(e)))
        found.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else complaints.append(r.url))
        found.goto(drawn(name).as_uri())
        return found

    yield page
    context.close()
    assert complaints == []


@pytest.mark.parametrize("name", ["a real run", *MADE])
def test_a_page_is_clean_in_both_schemes_and_at_both_widths(opened: Opened, name: str) -> None:
    page = opened(name)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.evaluate("document.documentElement.outerHTML.length") < 5e6
    paper = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        paper[scheme] = sum(
            map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor")))
        )
        for width in (DESKTOP, PHONE):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            if name in MADE and (scheme, width) not in {("light", DESKTOP), ("dark", PHONE)}:
                continue  # axe takes 10 s for a page of 200 classes: each scheme and each width once
            bad = barriers(page)
            assert bad == [], f"{scheme}, {width} px"
    assert paper["light"] > 700  # of 765: the scheme was followed
    assert paper["dark"] < 100
    page.add_style_tag(content=".lead{color:var(--line)}")  # axe is awake
    found = page.evaluate("axe.run('.lead', {runOnly: ['color-contrast']})")
    assert [v["id"] for v in found["violations"]] == ["color-contrast"]


@pytest.mark.parametrize("name", ["a real run", *MADE])
def test_on_paper_everything_is_there(opened: Opened, name: str) -> None:
    page = opened(name, PAPER, "dark")
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    beyond = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
        ".map(e => e.outerHTML.slice(0, 200))"
    )
    assert beyond == []
    cut = page.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(e => e.scrollHeight > e.clientHeight + 1)"
        ".filter(e => getComputedStyle(e).overflowY !== 'visible').length"
    )
    assert cut == 0
    assert page.locator("nav").is_hidden()
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() < page.locator("details").count()


def test_the_map_is_walked_through_by_keys(opened: Opened) -> None:
    page = opened("17 classes")
    marks, tip = page.locator("svg.map [role=option]"), page.locator("#tip")
    assert page.locator("svg.map [tabindex='0']").count() == 1  # one stop of the tab key, however many images
    page.locator("#spot").focus()
    page.keyboard.press("Tab")
    assert tip.is_visible()
    facts = page.evaluate("JSON.parse(document.getElementById('facts').textContent)")

    def at() -> int:
        found: int = page.evaluate(
            "[...document.querySelectorAll('svg.map [role=option]')].indexOf(document.activeElement)"
        )
        return found

    def place(i: int) -> tuple[float, float]:
        x, y = re.findall(r"-?[\d.]+", marks.nth(i).get_attribute("transform"))
        return float(x), float(y)

    for key, axis, sign in (("ArrowRight", 0, 1), ("ArrowLeft", 0, -1), ("ArrowDown", 1, 1), ("ArrowUp", 1, -1)):
        before = at()
        page.keyboard.press(key)
        after = at()
        if after != before:
            assert sign * (place(after)[axis] - place(before)[axis]) > 0
        path = facts["points"][after]
        assert path in tip.inner_text()
        assert facts["labels"][after] in tip.inner_text()
        assert tip.locator("img").count() == 1
        said = marks.nth(after).get_attribute("aria-label")
        assert path in said and f"labelled {facts['labels'][after]}" in said and "answered" in said
        assert marks.nth(after).get_attribute("aria-selected") == "true"
    page.keyboard.press("End")
    assert at() == marks.count() - 1
    page.keyboard.press("Escape")
    assert tip.is_hidden()


@pytest.mark.parametrize("name", ["17 classes", "200 classes of 30 letters"])
def test_pointing_at_an_image_of_the_map_shows_it_and_its_class(opened: Opened, name: str) -> None:
    page = opened(name)
    facts = page.evaluate("JSON.parse(document.getElementById('facts').textContent)")
    mark = page.locator("svg.map [role=option]").nth(7)
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.locator("#tip").is_visible()
    shown = page.locator("svg.map [aria-selected=true]").get_attribute("aria-label")
    lit = page.locator("svg.map .lit").count()
    label = next(v for v in facts["labels"] if f"labelled {v}," in shown)
    assert lit == facts["labels"].count(label)
    page.mouse.move(5, 5)
    assert page.locator("#tip").is_hidden()
    page.locator("#spot").select_option(label)
    assert page.locator("svg.map .lit").count() == lit  # colours come round again: a class is found by its name


def test_wrong_answers_stand_out_on_the_map(opened: Opened) -> None:
    page = opened("2 classes")
    facts = page.evaluate("JSON.parse(document.getElementById('facts').textContent)")
    wrong = sum(1 for a in facts["answers"] if a[2])
    assert 0 < wrong == page.locator("svg.map .missed").count()
    assert page.locator("svg.map [aria-label$=', wrong']").count() == wrong


def test_one_switch_turns_where_the_model_looked_on_and_off(opened: Opened) -> None:
    page = opened("17 classes")
    maps, switch = page.locator("#mistakes canvas.heat"), page.locator("#heat")
    assert maps.count() == page.locator("#mistakes .cards > li").count() > 5
    assert maps.first.is_visible()
    near = page.locator("#mistakes .near").first
    assert near.locator("img").count() == 3
    assert near.inner_text().startswith("like: ")
    switch.focus()
    page.keyboard.press("Space")
    assert maps.first.is_hidden()
    switch.click()
    assert maps.first.is_visible()


def test_a_number_that_is_clicked_shows_its_images(opened: Opened, finished: Finished) -> None:
    """Press the commonest answer of the matrix, then look at what the page shows."""
    seen = judged.read(finished.run.path / "predictions.parquet")
    assert isinstance(seen, judged.Judged)
    label, predicted = int(seen.label[0]), int(seen.predicted[0])
    wanted = [p for p, a, b in zip(seen.paths, seen.label, seen.predicted, strict=True) if (a, b) == (label, predicted)]
    page = opened("a real run")
    page.locator(f'#matrix button[data-true="{label}"][data-given="{predicted}"]').click()
    panel = page.locator("#panel")
    assert panel.locator("h4").inner_text().startswith(f"{len(wanted)} of {seen.classes[label]}")
    assert panel.locator(".path").all_inner_texts() == wanted
    assert panel.locator(".thumb img").count() == len(wanted)
    assert page.evaluate("document.activeElement.id") == "panel"
    panel.get_by_role("button", name="Close").click()
    assert panel.is_hidden()


def test_the_matrix_and_the_classes_are_sorted(opened: Opened) -> None:
    page = opened("17 classes")
    before = page.locator("#matrix tbody th").all_inner_texts()
    page.locator("#order").select_option("recall")
    after = page.locator("#matrix tbody th").all_inner_texts()
    assert sorted(after) == sorted(before) and after != before
    assert page.locator("#matrix thead th").all_inner_texts() == after
    page.locator("#classes thead button", has_text="recall").click()
    recall = [int(v.rstrip("%")) for v in page.locator("#classes tbody td:nth-child(3)").all_inner_texts()]
    assert recall == sorted(recall)
    assert page.locator("#classes th[aria-sort=ascending]").inner_text() == "recall"
