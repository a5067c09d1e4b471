"""The report in a real browser: silent, offline, usable, accessible, deaf to hostile records."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Playwright

from dpeval.analysis.report import html_report
from tests.browser.conftest import Opener

SIZES = {
    "wide": (1920, 1080), "desktop": (1280, 800), "tablet": (820, 1180), "phone": (390, 844),
}  # fmt: skip
MOST_BYTES = 4_000_000


def shown_rows(page: Page) -> list[str]:
    return page.locator("#runs-table tbody tr:not([hidden])").all_inner_texts()


def hover_text(page: Page, chart: str) -> str:
    """Point at the first mark of `chart` and read what appears."""
    plot = page.locator(f'[data-chart="{chart}"]')
    plot.scroll_into_view_if_needed()
    box = plot.locator(".scatterlayer .points path").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2 - 1, box["y"] + box["height"] / 2)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    found = plot.locator(".hoverlayer .hovertext")
    found.first.wait_for(timeout=60_000)
    return " ".join(found.all_text_contents())


def test_it_opens_without_a_word_and_without_a_request(opened: Opener, page_path: Path) -> None:
    with opened(page_path) as (page, seen):
        page.wait_for_timeout(300)
        assert seen.said == []
        assert [url for url in seen.asked if not url.startswith("data:")] == [page_path.as_uri()]
        assert page.locator(".figure img").count() >= 8
        broken = "images => images.filter(i => !i.complete || !i.naturalWidth).length"
        assert page.locator(".figure img").evaluate_all(broken) == 0


def test_pointing_at_a_mark_gives_interval_and_record(opened: Opener, page_path: Path) -> None:
    with opened(page_path) as (page, _):
        text = hover_text(page, "throughput")
        assert re.search(r"[\d.]+ img/s", text)
        assert "95 % interval" in text
        assert re.search(r"/\d+", text)


def test_the_cell_that_did_not_fit_is_labelled_with_its_need(
    opened: Opener, page_path: Path
) -> None:
    with opened(page_path) as (page, _):
        options = page.locator("#group option").all_inner_texts()
        page.select_option("#group", index=next(i for i, t in enumerate(options) if "GPU" in t))
        assert "15.9 of 10.8 GiB" in page.locator('[data-chart="throughput"]').inner_text()


def test_the_table_filters_and_sorts(opened: Opener, page_path: Path) -> None:
    with opened(page_path) as (page, _):
        everything = len(shown_rows(page))
        page.fill("#filter", "gpu devices=3")
        assert len(shown_rows(page)) == 3 < everything
        assert page.locator("#count").inner_text() == f"3 of {everything} runs"
        page.fill("#filter", "")
        page.select_option("#status", "oom")
        (row,) = shown_rows(page)
        assert "needs 15.9 GiB, has 10.8 GiB" in row
        page.select_option("#status", "")
        heading = page.get_by_role("button", name="img/s")
        heading.click()
        heading.click()
        first = page.locator("#runs-table tbody tr").first
        rates = page.locator("#runs-table tbody tr td:nth-child(8)").all_inner_texts()
        assert float(first.locator("td").nth(7).inner_text()) == max(float(r) for r in rates if r)
        assert rates[-1] == ""  # a run without a rate stays last


def test_everything_is_reached_by_keyboard(opened: Opener, page_path: Path) -> None:
    with opened(page_path) as (page, _):
        reached = set()
        for _ in range(80):
            page.keyboard.press("Tab")
            reached.add(
                page.evaluate("document.activeElement.id || document.activeElement.textContent")
            )
        assert {"group", "filter", "status", "img/s", "Skip to the recommendation"} <= reached
        page.focus("#filter")
        page.keyboard.type("devices=3")
        assert len(shown_rows(page)) == 3


def test_a_hostile_record_runs_no_script(opened: Opener, page_path: Path) -> None:
    with opened(page_path) as (page, seen):
        for index in range(page.locator("#group option").count()):
            page.select_option("#group", index=index)
            hover_text(page, "throughput")
        assert page.evaluate("window.hacked") is None
        assert page.locator("img[src='x']").count() == 0
        assert "onerror" in page.locator("#runs-table").inner_text()  # shown, as text
        assert seen.said == []


def test_the_first_screen_says_what_to_use_what_it_loses_and_what_to_try(
    opened: Opener, page_path: Path
) -> None:
    assert page_path.stat().st_size <= MOST_BYTES
    with opened(page_path, 1280, 800) as (page, _):
        for place in (".hero h2", ".big >> nth=2", ".bar >> nth=0", ".levers h3 >> nth=0"):
            box = page.locator(place).bounding_box()
            assert box is not None, place
            assert box["y"] + box["height"] <= 800, place
        assert page.locator(".hero h2").inner_text().startswith(("1 ", "2 ", "3 ", "4 ", "8 "))


def test_each_chart_is_shown_once_with_its_files(opened: Opener, page_path: Path) -> None:
    with opened(page_path) as (page, _):
        titles = page.locator("#explore figcaption > span:first-child:visible").all_inner_texts()
        assert len(titles) == len(set(titles)) >= 6
        assert not page.locator(".twin").first.is_visible()
        links = page.locator("#explore .files a").evaluate_all("all => all.map(a => a.href)")
        beside = {path.as_uri() for path in page_path.parent.iterdir()}
        assert len(links) > 3 * len(titles) - 3
        assert set(links) <= beside


def test_a_table_of_objectives_becomes_cards_on_a_phone(opened: Opener, page_path: Path) -> None:
    with opened(page_path, *SIZES["phone"]) as (page, _):
        cells = page.locator("#recommendation .stacking td").evaluate_all(
            "all => all.map(td => td.getBoundingClientRect().right)"
        )
        assert max(cells) <= SIZES["phone"][0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_no_fault(
    opened: Opener, page_path: Path, shots: Path, size: str, scheme: str
) -> None:
    with opened(page_path, *SIZES[size], scheme=scheme) as (page, _):
        page.screenshot(path=shots / f"report-{size}-{scheme}.png", full_page=True)
        wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, "the page scrolls sideways"
        faults = [
            (fault["id"], fault["nodes"][0]["html"][:200])
            for fault in Axe().run(page).response["violations"]
        ]
        assert faults == []


def test_it_prints_to_pdf(playwright: Playwright, page_path: Path, tmp_path: Path) -> None:
    del playwright  # skips where there is no browser
    pdf = html_report.to_pdf(page_path, tmp_path / "report.pdf")
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", content)) > 2
