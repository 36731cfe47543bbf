"""The report in a real browser, on a phone's screen and on a desktop's."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sample_results import accuracy_of, keep, latency_of
from test_curves import throttled
from tiny_artifacts import write_tiny_artifact

from mf_deploy.benchmarks.latency import Placement
from mf_deploy.report import collect, compare, render

playwright = pytest.importorskip("playwright.sync_api")

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
LONG = "a-very-long-name-of-a-model-that-someone-chose-without-thinking-of-small-screens"


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium: make system-packages")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty artifacts with everything that a page can show."""
    folder = tmp_path_factory.mktemp("reports")
    for run in ("old", "new"):
        for index in range(20):
            target = ("onnx", "tflite", "coreml")[index % 3]
            artifact = write_tiny_artifact(
                folder / run / LONG / f"{target}-w8a8-{index}", target=target, scheme="w8a8"
            )
            latency = latency_of(artifact, cpu=f"{LONG} CPU")
            placement = [Placement(operator=LONG, name=LONG, unit="neural-engine")]
            measurement = throttled(latency, slower=2 if run == "new" else 1).model_copy(
                update={"placement": placement}
            )
            keep(artifact, accuracy_of(artifact, lost=3 * index))
            keep(artifact, latency.model_copy(update={"measurement": measurement}))
    new = collect(folder / "new")
    file = folder / "report.html"
    file.write_text(render(new, ".html", compare(new, collect(folder / "old"))))
    return file


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)])
def test_nothing_overflows_and_nothing_is_hidden(
    browser: "Browser", page_file: Path, width: int, height: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": height})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: said.append(request.url) if request.url[:4] != "file" else None)
    page.goto(page_file.as_uri())
    for details in page.locator("details").all():
        details.evaluate("element => { element.open = true }")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate(
        """width => [...document.querySelectorAll('body *')].filter(element =>
            !element.closest('.scroll, svg, .skip') && element.getBoundingClientRect().right > width + 1)
            .map(element => element.outerHTML.slice(0, 120))""",
        width,
    )
    assert wide == []
    for name in ("svg polyline.front", "svg .halo", "svg .median", "svg polygon.band", "table.placement"):
        assert page.locator(name).first.bounding_box(), name
    assert page.locator("h2#baseline").inner_text() == "Against the baseline: 20 worse"  # the p90s
    assert said == []
    page.close()


def test_small_text_is_not_too_small_and_links_lead_somewhere(browser: "Browser", page_file: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(page_file.as_uri())
    smallest = page.evaluate(
        """() => Math.min(...[...document.querySelectorAll('main :is(p, td, th, li, dd, span, small)')]
            .filter(element => element.innerText)
            .map(element => parseFloat(getComputedStyle(element).fontSize)))"""
    )
    assert smallest >= 11
    page.locator("tbody th a").last.click()
    assert page.url.endswith("#artifact-20")
    page.close()
