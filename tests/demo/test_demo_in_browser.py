"""The page in a real browser: pictures, messages, no request to another host, nothing cut off."""

import os
import re
import shutil
import urllib.parse
from pathlib import Path

import pytest

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
SIZES = {"desk": (1280, 900), "phone": (390, 844)}
WAIT = 15_000  # milliseconds

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="no Chromium")]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as library:
        browser = library.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(params=SIZES)
def page(request, browser, served):
    """The open page in a window of a size; at the end no request has gone to another host and no script has failed."""
    width, height = SIZES[request.param]
    context = browser.new_context(viewport={"width": width, "height": height})
    hosts, faults = set(), []
    context.on("request", lambda sent: hosts.add(urllib.parse.urlsplit(sent.url).hostname))
    page = context.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: faults.append(dialog.message))
    page.goto(served[0])
    page.locator("#picture").wait_for(timeout=WAIT)
    yield page
    context.close()
    assert hosts <= {"127.0.0.1", None, ""}, hosts  # without a host: data and blobs
    assert faults == []


def choose(page, path):
    """Chooses a file, in place of the one before."""
    if page.locator("#picture button[aria-label='Remove Image']").count():
        page.locator("#picture button[aria-label='Remove Image']").click()
    page.locator("#picture input[type=file]").first.set_input_files(path)


def picture(page, name):
    """Saves what is seen, where a person asks for it with KERAS_VIT_SCREENSHOTS."""
    if folder := os.environ.get("KERAS_VIT_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}-{page.viewport_size['width']}.png", full_page=True)


def check_width(page):
    """Nothing is wider than the window, or begins left of it."""
    width = page.viewport_size["width"]
    cut = page.evaluate(
        """width => [...document.querySelectorAll('.gradio-container *')].map(each => [each, each.getBoundingClientRect()])
        .filter(([each, box]) => box.width > 0 && (box.right > width + 1 || box.left < -1))
        .map(([each, box]) => `${each.tagName} ${each.className} ${box.left} to ${box.right}: ${each.innerText}`)""",
        width,
    )
    assert cut == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_picture_gets_classes_and_a_map(page, viewer, files):
    picture(page, "empty")
    choose(page, files["good.png"])
    page.locator(".seen img").nth(1).wait_for(timeout=WAIT)
    wanted = viewer.answer(files["good.png"])
    best = next(iter(wanted.classes))
    shown = page.locator(".classes").first.inner_text()
    assert " ".join(best.split()) in " ".join(shown.split())
    assert f"{100 * wanted.classes[best]:.0f}%" in shown
    sizes = page.evaluate("[...document.querySelectorAll('.seen img')].map(each => [each.naturalWidth, each.naturalHeight])")
    assert sizes == [[384, 288], [384, 288]]
    assert "ms for the classes" in page.locator(".notes").first.inner_text()
    assert page.locator(".run-name h2").nth(1).inner_text() == "<b>second</b>"
    check_width(page)
    picture(page, "answer")


def test_a_method_and_a_class_are_chosen(page, files):
    choose(page, files["good.png"])
    page.locator(".seen img").nth(1).wait_for(timeout=WAIT)
    assert page.locator("#class").is_visible()
    page.locator("#method input").click()
    page.get_by_role("option", name="attention", exact=True).click()
    page.locator("#block").wait_for(timeout=WAIT)
    assert not page.locator("#class").is_visible()
    before = page.locator(".seen img").first.get_attribute("src")
    page.locator("#method input").click()
    page.get_by_role("option", name="legrad").click()
    page.locator("#class").wait_for(timeout=WAIT)
    page.wait_for_function("before => document.querySelector('.seen img').src !== before", arg=before, timeout=WAIT)
    assert not page.locator("#block").is_visible()
    page.locator("#class input").click()
    page.get_by_role("option", name="cat", exact=True).click()
    page.get_by_text("This run has no class cat: its predicted class is explained.").wait_for(timeout=WAIT)
    check_width(page)


def test_what_is_no_picture_gets_a_message(page, files):
    for name, message in (
        ("corrupt.png", "corrupt.png: cannot be read as a picture"),
        ("huge.png", "received 10000x10000 pixels; allowed: 89,478,485"),
        ("words.txt", "Invalid file type: words.txt. Only image/* allowed."),
        ("text.png", "text.png: cannot be read as a picture"),
        ("empty.png", "empty.png: the file is empty"),
    ):
        choose(page, files[name])
        page.get_by_text(message).wait_for(timeout=WAIT)
        check_width(page)
    picture(page, "message")
    choose(page, files["good.png"])
    page.locator(".seen img").nth(1).wait_for(timeout=WAIT)
    assert page.locator("#message .problem").count() == 0


def test_a_file_that_is_too_large_gets_a_message(page, tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(bytes(21 * 2**20))
    choose(page, path)
    page.get_by_text("exceed the maximum allowed size of 20.0 Mb").first.wait_for(timeout=WAIT)
    picture(page, "large")


def test_an_example_leaves_the_checks_of_files_in_place(page, files):
    page.locator("#examples .gallery-item").first.click()
    page.locator(".seen img").nth(1).wait_for(timeout=WAIT)
    sent = []

    def other(route):
        sent.append(route.request.post_data.replace("test-1.png", "../x.png"))
        route.continue_(post_data=sent[-1])

    page.route(re.compile("queue/join"), other)
    page.locator("#method input").click()
    page.get_by_role("option", name="rollout").click()
    page.get_by_text("Error", exact=True).first.wait_for(timeout=WAIT)
    picture(page, "refused")
    assert "/../x.png" in sent[0]
