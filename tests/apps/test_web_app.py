"""The benchmark app in headless Chromium, over HTTPS: real engines on real artifacts, results on disk."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from playwright.sync_api import Browser, Page, Route, sync_playwright
from serving import Running, engines_or_skip, running
from tiny_artifacts import write_tiny_artifact

from mf_deploy.artifact import find_artifacts, read_record
from mf_deploy.benchmarks.latency import LatencyReport, Measurement
from mf_deploy.benchmarks.probe import Probe as HostProbe
from mf_deploy.benchmarks.protocol import Protocol
from mf_deploy.benchmarks.server.app import Service
from mf_deploy.benchmarks.server.certificate import Certificate, certificate_for
from mf_deploy.benchmarks.server.offers import offers_of
from mf_deploy.cli.bench_serve import keep_result

SIDE = 32
FLAGS = (
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--enable-unsafe-webgpu",  # with the next one: WebGPU without a GPU
    "--use-webgpu-adapter=swiftshader",
)
PHONE = {"width": 390, "height": 844}
PATIENCE_MS = 240_000
TOLERANCES = {"onnx-fp32": 1e-4, "tflite-fp32": 1e-4, "onnx-w8a8": 0.2, "tflite-w8a8": 0.4}
"""In int8 a number between two codes goes to either of them by the last bit of a float before it: changing
the constants of the TFLite file by 1e-7 moves the logits of one of the pictures by 0.28 of 4.6."""
SHORT = Protocol(min_runs=30, warmup_runs=2, warmup_seconds=0)

Open = Callable[[Running], Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    engines_or_skip()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certificate]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MF_DEPLOY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield certificate_for([])


@pytest.fixture
def digits_run(demo: tuple[Path, str], tmp_path: Path) -> Path:
    """Mobile-Former 26M for both engines, in float and in int8, as the demo made it."""
    for name in TOLERANCES:
        shutil.copytree(demo[0] / "mobile_former_26m" / name, tmp_path / "mobile_former_26m" / name)
    return tmp_path / "mobile_former_26m"


@pytest.fixture
def tiny_run(tmp_path: Path) -> Path:
    write_tiny_artifact(tmp_path / "tiny" / "onnx-fp32")
    return tmp_path / "tiny"


@contextmanager
def serving(run: Path, certificate: Certificate, protocol: Protocol = SHORT) -> Iterator[Running]:
    offers = offers_of(find_artifacts(run))
    service = Service(offers, engines_or_skip(), "secret-of-this-test", {"quick": protocol}, keep_result)
    with running(service, certificate) as server:
        yield server


@pytest.fixture
def open_app(browser: Browser) -> Iterator[Open]:
    """Opens the app as a phone does that has accepted the certificate; no page may break its policy."""
    complaints: list[str] = []
    contexts = []

    def open_app(server: Running) -> Page:
        context = browser.new_context(ignore_https_errors=True, viewport=PHONE)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda said: complaints.append(said.text) if "Content Security Policy" in said.text else None,
        )
        page.goto(f"https://localhost:{server.port}/#{server.service.token}")
        return page

    yield open_app
    for context in contexts:
        context.close()
    assert not complaints


def choose(page: Page, name: str, values: list[str]) -> None:
    page.wait_for_selector("#choices:not([hidden])")
    for box in page.query_selector_all(f"[name={name}]"):
        if box.is_enabled():
            box.set_checked(box.get_attribute("value") in values)


def wait_for_results(page: Page, count: int) -> None:
    """Until so many results are on the computer."""
    page.wait_for_function(
        "count => document.querySelectorAll('#cards .good, #cards .bad').length >= count", arg=count
    )


def wait_for_runs(page: Page, count: int) -> None:
    page.wait_for_function(
        "count => Number(document.querySelector('#live-runs').textContent) > count", arg=count
    )


def reports_of(run: Path) -> list[LatencyReport]:
    return [read_record(path, LatencyReport, "") for path in sorted((run / "results").glob("*.json"))]


def measured(report: LatencyReport) -> Measurement:
    assert report.measurement is not None, report.not_run
    return report.measurement


@pytest.mark.slow
def test_both_engines_run_float_and_int8_with_native_answers(
    digits_run: Path, certificate: Certificate, open_app: Open
) -> None:
    with serving(digits_run, certificate) as server:
        page = open_app(server)
        assert page.evaluate("self.crossOriginIsolated && self.isSecureContext")
        choose(page, "threads", ["2"])
        page.click("#start")
        wait_for_results(page, 4)
        assert page.locator("#cards .good").count() == 4
        lines = [card.split("\n") for card in page.locator("#cards li").all_inner_texts()]
    reports = {report.artifact: report for report in reports_of(digits_run)}
    assert set(reports) == set(TOLERANCES)
    for name, report in reports.items():
        found = measured(report)
        artifact = next(of for of in find_artifacts(digits_run) if of.name == name)
        expected = HostProbe.of(artifact).expected
        assert found.probe_logits is not None
        np.testing.assert_allclose(found.probe_logits, expected, rtol=0, atol=TOLERANCES[name], err_msg=name)
        assert found.correctness is not None
        assert found.correctness.passed
        assert (report.kind, report.threads, found.accelerator_used) == ("browser", 2, "wasm")
        assert len(found.samples_ms) == 30
        card = next(card for card in lines if card[0] == f"{report.model}/{name}")
        for shown, kept in (("p50, ms", found.statistics.p50_ms), ("p90, ms", found.statistics.p90_ms)):
            assert float(card[card.index(shown) + 1]) == pytest.approx(kept, rel=6e-3)
        assert (found.timer_resolution_ms or 1) < 0.1  # an isolated page's clock; others get 0.1 ms and more


def worker_ticks() -> dict[int, int]:
    """Thread -> ticks of user time, of all workers in the pages of Chromium processes below this one."""
    ticks = {}
    for process in psutil.Process().children(recursive=True):
        for stat in Path(f"/proc/{process.pid}/task").glob("*/stat"):
            try:
                number, _, rest = stat.read_text().partition(" (")
            except OSError:  # it has ended
                continue
            name, _, fields = rest.rpartition(") ")
            if name.startswith("DedicatedWorker"):
                ticks[int(number)] = int(fields.split()[11])
    return ticks


@pytest.mark.slow
@pytest.mark.parametrize("artifact", ["onnx-fp32", "tflite-fp32"])
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_really_compute(
    digits_run: Path, certificate: Certificate, open_app: Open, artifact: str, threads: int
) -> None:
    with serving(digits_run / artifact, certificate, Protocol.sustained(600)) as server:
        page = open_app(server)
        choose(page, "threads", [str(threads)])
        page.click("#start")
        wait_for_runs(page, 300)
        before = worker_ticks()
        wait_for_runs(page, 2000)
        worked = [now - before.get(thread, 0) for thread, now in worker_ticks().items()]
        assert sum(ticks >= 3 for ticks in worked) == threads
        page.click("#stop")
        page.wait_for_selector("#choices:not([hidden])")


def test_webgpu_is_used_whole_where_the_browser_has_it(
    tiny_run: Path, certificate: Certificate, open_app: Open
) -> None:
    with serving(tiny_run, certificate) as server:
        page = open_app(server)
        page.wait_for_selector("#choices:not([hidden])")
        if page.is_disabled("[value=webgpu]"):
            pytest.skip("this Chromium has no WebGPU without a GPU")
        choose(page, "accelerator", ["webgpu"])
        page.click("#start")
        wait_for_results(page, 1)
    found = measured(reports_of(tiny_run)[0])
    assert (found.accelerator_requested, found.accelerator_used) == ("webgpu", "webgpu")
    assert found.correctness is not None
    assert found.correctness.passed


def test_three_phones_at_once_all_get_through(
    tiny_run: Path, certificate: Certificate, open_app: Open
) -> None:
    with serving(tiny_run, certificate) as server:
        pages = [open_app(server) for _ in range(3)]
        for page in pages:
            page.click("#start")
        for page in pages:
            wait_for_results(page, 1)
    assert len(reports_of(tiny_run)) == 3


def test_wrong_answers_are_marked_on_the_phone(
    tiny_run: Path, certificate: Certificate, open_app: Open
) -> None:
    def other_inputs(route: Route) -> None:
        route.fulfill(body=np.random.default_rng(1).random(3 * 3 * SIDE * SIDE, np.float32).tobytes())

    with serving(tiny_run, certificate) as server:
        page = open_app(server)
        page.route("**/inputs", other_inputs)
        page.click("#start")
        wait_for_results(page, 1)
        assert "Wrong answers" in page.inner_text("#cards")
    (report,) = reports_of(tiny_run)
    correctness = measured(report).correctness
    assert correctness is not None
    assert not correctness.passed


@pytest.mark.slow
def test_results_outlive_a_lost_network_and_a_reload(
    tiny_run: Path, certificate: Certificate, open_app: Open
) -> None:
    def lose_the_answer(route: Route) -> None:
        lost.append(route.fetch().status)
        route.abort()

    lost: list[int] = []
    with serving(tiny_run, certificate) as server:
        page = open_app(server)
        page.route("**/api/results", lambda route: route.abort())
        page.click("#start")
        page.wait_for_selector("#queue:has-text('1 not on the computer yet')")
        page.reload()
        page.wait_for_selector("#queue:has-text('1 not on the computer yet')")
        assert not reports_of(tiny_run)
        page.unroute("**/api/results")
        page.route("**/api/results", lose_the_answer, times=1)
        page.wait_for_selector("#queue:not(:has-text('not on the computer'))", state="attached")
    assert lost == [201]
    assert len(reports_of(tiny_run)) == 1


def test_stopped_it_keeps_what_it_has(tiny_run: Path, certificate: Certificate, open_app: Open) -> None:
    with serving(tiny_run, certificate, Protocol.sustained(600)) as server:
        page = open_app(server)
        page.click("#start")
        page.wait_for_selector("#live-histogram svg rect")
        page.click("#stop")
        wait_for_results(page, 1)
        assert "Ended early: stopped on the phone" in page.inner_text("#problem")
    (report,) = reports_of(tiny_run)
    found = measured(report)
    assert found.partial == "stopped on the phone"
    assert found.sampled_at_s is not None
    assert found.sampled_at_s[-1] < 600


def test_a_page_in_the_background_stops(tiny_run: Path, certificate: Certificate, open_app: Open) -> None:
    with serving(tiny_run, certificate, Protocol.sustained(600)) as server:
        page = open_app(server)
        page.click("#start")
        page.wait_for_selector("#live-histogram svg rect")
        page.evaluate(
            "() => { Object.defineProperty(document, 'hidden', { value: true });"
            " document.dispatchEvent(new Event('visibilitychange')); }"
        )
        wait_for_results(page, 1)
    assert measured(reports_of(tiny_run)[0]).partial == "the page was in the background"


def test_a_model_that_does_not_load_says_so(tiny_run: Path, certificate: Certificate, open_app: Open) -> None:
    with serving(tiny_run, certificate) as server:
        page = open_app(server)
        page.evaluate("crypto.subtle.digest = async () => new ArrayBuffer(32)")
        page.click("#start")
        wait_for_results(page, 1)
        assert "arrived damaged" in page.inner_text("#cards")
    assert "arrived damaged" in (reports_of(tiny_run)[0].not_run or "")


def test_another_server_s_token_is_refused_in_words(
    tiny_run: Path, certificate: Certificate, open_app: Open
) -> None:
    with serving(tiny_run, certificate) as server:
        page = open_app(server)
        page.wait_for_selector("#choices:not([hidden])")
        page.goto(f"https://localhost:{server.port}/#another")
        page.reload()
        page.wait_for_selector("#problem:has-text('Scan the code in the terminal again')")
        assert page.is_hidden("#choices")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_small_phone_and_is_installable(
    tiny_run: Path, certificate: Certificate, open_app: Open, scheme: str
) -> None:
    with serving(tiny_run, certificate) as server:
        page = open_app(server)
        page.set_viewport_size({"width": 320, "height": 640})
        page.emulate_media(color_scheme=scheme)
        page.wait_for_selector("#choices:not([hidden])")
        for summary in page.query_selector_all("summary"):
            summary.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        ink, paper = page.evaluate(
            "['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name])"
        )
        assert (sum(channels(ink)) < sum(channels(paper))) == (scheme == "light")
        assert "onnxruntime-web" in page.inner_text("#licences")
        manifest = page.evaluate("fetch('manifest.webmanifest').then(answer => answer.json())")
        for icon in manifest["icons"]:
            assert page.evaluate("path => fetch(path).then(answer => answer.status)", icon["src"]) == 200


def channels(colour: str) -> list[int]:
    return [int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]


def test_the_engines_are_those_that_were_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from mf_deploy.benchmarks.server import engines
    from mf_deploy.errors import MISSING_TOOL, MfDeployError

    engines_or_skip()
    monkeypatch.setenv("MF_DEPLOY_CACHE", str(tmp_path))
    smallest = replace(engines.PACKAGES[2], integrity=engines.PACKAGES[1].integrity)
    monkeypatch.setattr(engines, "PACKAGES", (smallest,))
    with pytest.raises(MfDeployError, match="not the pinned") as raised:
        engines.set_up()
    assert raised.value.exit_code == MISSING_TOOL
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MfDeployError, match="npm is not installed") as raised:
        engines.set_up()
    assert raised.value.exit_code == MISSING_TOOL
    with pytest.raises(MfDeployError, match="mf-deploy setup web"):
        engines.open_engines()
