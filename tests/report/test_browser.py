"""The pages in a real browser: nothing is requested, nothing is cut off, what scrolls says so. Needs Playwright and Chromium."""

import shutil

import numpy as np
import pytest
from made import looks_right, single, write_run

from keras_vit.report.comparison import write_comparison_report
from keras_vit.report.predictions import predictions_page
from keras_vit.report.run import write_run_report
from keras_vit.runs.prediction import Prediction, thumbnail

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
SIZES = [(1280, 800), (390, 844)]
LONG = "a-name-without-any-place-to-break-it-" * 4


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as engines:
        chromium = engines.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-quic"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Each kind of page, with long names."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [write_run(folder, LONG, summary={"device": LONG, "data_notes": [LONG]}), write_run(folder, "b", learning_rate=0.02)]
    report = write_run_report(runs[0], single(runs[0]), attention=looks_right)
    comparison = write_comparison_report(runs, folder / "comparison.html")
    small = thumbnail(np.zeros((8, 8, 3), np.uint8))
    predictions = folder / "predictions.html"
    predictions.write_text(predictions_page([Prediction(LONG, [LONG, "b"], [0.9, 0.1], small)], LONG, [LONG]), encoding="utf-8")
    return [report, comparison, predictions]


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_requested_and_nothing_is_cut_off(browser, pages, size):
    for path in pages:
        page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        requests, errors = [], []
        page.on("request", lambda request, requests=requests: requests.append(request.url))
        page.on("console", lambda message, errors=errors: errors.append(message.text))
        page.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_timeout(100)
        assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
        assert errors == []
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        # What is wider than its frame scrolls there, and the frame says so.
        silent = """[...document.querySelectorAll(".scroll")].filter(
            part => part.scrollWidth > part.clientWidth + 1 && !part.parentNode.dataset.more).length"""
        assert page.evaluate(silent) == 0
        outside = """[...document.querySelectorAll("h1, h2, h3, p, dd, li, figcaption, footer")].filter(
            part => part.scrollWidth > part.clientWidth + 1).map(part => part.textContent)"""
        assert page.evaluate(outside) == []
        page.close()


def test_a_click_sorts_the_classes(browser, pages):
    page = browser.new_page()
    page.goto(pages[0].as_uri())
    column = "[...document.querySelectorAll('.sortable tbody tr')].map(row => row.cells[2].textContent)"
    assert page.evaluate(column) == ["100.0", "66.7", "33.3"]
    page.click("text=recall (%)")
    assert page.evaluate(column) == ["33.3", "66.7", "100.0"]
    page.close()
