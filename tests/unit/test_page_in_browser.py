"""The report's page in a browser: axe finds nothing, it fits a phone, needs no script and no network.

Chromium is Debian's (`make chromium`).
"""

import json
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from reported import store_everything

from analysis.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "results" / "reference"
CHROMIUM = shutil.which("chromium")
AXE = (files("axe_playwright_python") / "axe.min.js").read_text()
PHONE, DESK = 360, 1280

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: `make chromium`")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Who runs as root has no sandbox; the page is ours.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=["recorded", "everything"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "recorded":
        words = ["--results", str(RECORDED / "cells")]
        words += ["--forecast", *map(str, sorted((RECORDED / "forecasts").glob("*.json")))]
    else:
        store_everything(folder / "results")
        words = ["--results", str(folder / "results")]
    page = folder / "page.html"
    assert main(["report", *words, "--html", str(page)]) == 0
    return page


def opened(browser: Browser, path: Path, width: int, *, dark: bool = False, scripts: bool = True) -> Page:
    """The page with everything unfolded; what it asks of the network or complains of is an error."""
    context = browser.new_context(
        viewport={"width": width, "height": 800},
        color_scheme="dark" if dark else "light",
        java_script_enabled=scripts,
        offline=True,
    )
    page = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    assert (asked, said) == ([path.as_uri()], [])
    return page


def unfold(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")


@pytest.mark.parametrize(("width", "dark"), [(DESK, False), (PHONE, True)], ids=["desk", "dark phone"])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_window(
    browser: Browser, path: Path, width: int, dark: bool
) -> None:
    page = opened(browser, path, width, dark=dark)
    unfold(page)
    page.evaluate(AXE)
    found = page.evaluate(
        "axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice'],"
        " resultTypes: ['violations']})"
    )
    problems = [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found["violations"]]
    assert problems == []
    assert "color-contrast" in {one["id"] for one in found["passes"]}
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_letters_of_figures_stand_out_from_the_page(browser: Browser, path: Path, dark: bool) -> None:
    """axe does not look at them: 4.5 to 1, as of other text."""
    page = opened(browser, path, DESK, dark=dark)
    colours = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor,"
        " ...new Set([...document.querySelectorAll('svg text')].map(one => getComputedStyle(one).fill))]"
    )
    paper, *letters = [luminance(colour) for colour in colours]
    assert letters
    for one in letters:
        assert (max(one, paper) + 0.05) / (min(one, paper) + 0.05) >= 4.5, colours


def luminance(colour: str) -> float:
    """Relative luminance of rgb(r, g, b), by WCAG 2."""
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return sum(weight * one for weight, one in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_keys_reach_all_that_can_be_acted_on(browser: Browser, path: Path) -> None:
    page = opened(browser, path, DESK)
    there = page.locator("a[href], summary, [tabindex='0']")
    wanted = there.evaluate_all("all => all.filter(one => one.checkVisibility()).length")
    assert wanted > 5
    reached = set()
    for _ in range(wanted):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "[...document.querySelectorAll('a[href], summary, [tabindex=\"0\"]')]"
                ".indexOf(document.activeElement)"
            )
        )
    assert len(reached - {-1}) == wanted
    folded = page.locator("details").first
    folded.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert folded.get_attribute("open") is not None


def test_it_reads_the_same_without_scripts(browser: Browser, path: Path) -> None:
    with_them, without = (
        opened(browser, path, DESK, scripts=scripts).locator("main").inner_text() for scripts in (True, False)
    )
    assert with_them == without
    assert "KSM freed" in without


def test_what_is_folded_is_on_paper(browser: Browser, path: Path) -> None:
    page = opened(browser, path, DESK, dark=True)
    page.emulate_media(media="print")
    # The medium changes at once, what is folded is laid out a moment later.
    page.wait_for_function(
        "[...document.querySelectorAll('details > :not(summary)')]"
        ".every(one => one.checkVisibility({contentVisibilityAuto: true}))"
    )
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_every_figure_says_what_it_shows_and_its_marks_what_they_are(browser: Browser, path: Path) -> None:
    page = opened(browser, path, DESK)
    drawn = page.evaluate("[...document.querySelectorAll('svg')].map(one => one.ariaLabel)")
    assert len(drawn) > 5
    assert all(len(words) > 20 for words in drawn), json.dumps(drawn, indent=1)
    marks = page.evaluate("[...document.querySelectorAll('svg .mark > title')].map(one => one.textContent)")
    assert any("1 idle, ksm, freed: " in words for words in marks)
