"""The benchmark server on the network: who gets in, what is kept, what is refused. Real TLS, real posts."""

import gzip
import json
import random
import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from malformed_posts import malformed
from serving import Running, running, valid_post
from tiny_artifacts import write_tiny_artifact

from mf_deploy.artifact import Artifact, read_record
from mf_deploy.benchmarks.latency import LatencyReport
from mf_deploy.benchmarks.protocol import Protocol
from mf_deploy.benchmarks.server.app import Limits, Received, Service
from mf_deploy.benchmarks.server.certificate import Certificate, certificate_for, lan_addresses
from mf_deploy.benchmarks.server.engines import Engines, EnginesRecord, PackageRecord
from mf_deploy.benchmarks.server.offers import Offer, offers_of
from mf_deploy.cli.bench_serve import keep_result
from mf_deploy.report import collect

TOKEN = "the-right-token-of-this-server"
MALFORMED_POSTS = 1000


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certificate]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MF_DEPLOY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield certificate_for(lan_addresses())


@pytest.fixture
def offer(tmp_path: Path) -> Offer:
    (offer,) = offers_of([write_tiny_artifact(tmp_path / "tiny" / "onnx-fp32")])
    return offer


def service_of(offers: list[Offer], folder: Path, **changes: Any) -> Service:
    """A server without the engines, which these tests do not run."""
    packages = [
        PackageRecord(name=name, version="1.2.3", licence="MIT", owner="X")
        for name in ("onnxruntime-web", "@litertjs/core")
    ]
    engines = Engines(folder / "web-0", EnginesRecord(packages=packages, files=[]))
    return Service(offers, engines, TOKEN, {"quick": Protocol.quick()}, keep_result, **changes)


@pytest.fixture
def server(offer: Offer, certificate: Certificate, tmp_path: Path) -> Iterator[Running]:
    limits = Limits(post_bytes=200_000, requests_per_minute=100_000)
    with running(service_of([offer], tmp_path, limits=limits), certificate) as server:
        yield server


def results_of(offer: Offer) -> list[Path]:
    return sorted((offer.artifact.folder.parent / "results").glob("*"))


def test_a_post_becomes_a_result_of_the_one_schema_that_the_report_shows(
    server: Running, offer: Offer
) -> None:
    heard: list[Received] = []

    def keep(result: Received) -> bool:
        heard.append(result)
        return keep_result(result)

    server.service.keep = keep
    post = valid_post(offer)
    status, answer = server.post(post)
    assert status == 201
    assert answer["correctness"]["passed"]
    assert answer["statistics"]["p50_ms"] == pytest.approx(11.5)
    (path,) = results_of(offer)
    report = read_record(path, LatencyReport, "")
    assert [received.report for received in heard] == [report]
    assert (report.kind, report.threads, report.artifact) == ("browser", 2, "onnx-fp32")
    assert report.device.label == "Pixel 8, Google Chrome 141"
    assert report.measurement is not None
    assert report.measurement.samples_ms == post["measurement"]["samples_ms"]
    assert report.measurement.engine.name == "ONNX Runtime Web"
    assert report.measurement.timer_resolution_ms == 0.005
    (entry,) = collect(offer.artifact.folder.parent).entries
    assert list(entry.latency.values()) == [report]


def test_the_same_post_again_is_answered_and_kept_once(server: Running, offer: Offer, tmp_path: Path) -> None:
    post = valid_post(offer)
    assert [server.post(post)[0] for _ in range(3)] == [201, 200, 200]
    assert len(results_of(offer)) == 1
    with running(service_of([offer], tmp_path), server.certificate) as restarted:
        assert restarted.post(post)[0] == 200
    assert len(results_of(offer)) == 1


@pytest.mark.parametrize("wrong", ["shuffled", "constant", "too few", "other width"])
def test_a_fast_model_with_wrong_answers_is_caught(server: Running, offer: Offer, wrong: str) -> None:
    post = valid_post(offer)
    logits = np.array(post["measurement"]["probe_logits"])
    given = {
        "shuffled": logits[:, ::-1],
        "constant": np.zeros_like(logits),
        "too few": logits[:-1],
        "other width": logits[:, :-1],
    }[wrong]
    post["measurement"]["probe_logits"] = given.tolist()
    status, answer = server.post(post)
    assert status == 201
    assert not answer["correctness"]["passed"]
    report = read_record(results_of(offer)[0], LatencyReport, "")
    assert report.measurement is not None
    assert report.measurement.correctness is not None
    assert not report.measurement.correctness.passed


def test_three_phones_that_post_at_once_lose_nothing(server: Running, offer: Offer) -> None:
    posts = [[valid_post(offer) for _ in range(10)] for _ in range(3)]
    start = threading.Barrier(3)
    statuses: list[int] = []

    def phone(own: list[dict[str, Any]]) -> None:
        start.wait()
        statuses.extend(server.post(post)[0] for post in own)

    phones = [threading.Thread(target=phone, args=(own,)) for own in posts]
    for thread in phones:
        thread.start()
    for thread in phones:
        thread.join(120)
    assert statuses == [201] * 30
    kept = {path.stem.rpartition("-")[2] for path in results_of(offer)}
    assert kept == {post["id"] for own in posts for post in own}
    for path in results_of(offer):
        read_record(path, LatencyReport, "")


@pytest.mark.parametrize("given", [None, "Bearer wrong", f"Bearer {TOKEN}x", TOKEN, "Bearer ü", "Bearer "])
def test_without_the_token_there_is_nothing(server: Running, offer: Offer, given: str | None) -> None:
    headers = {"Authorization": given.encode("latin-1")} if given else {}
    body = json.dumps(valid_post(offer)).encode()
    for method, path in (
        ("GET", "/api/session"),
        ("GET", f"/api/models/{offer.id}"),
        ("GET", f"/api/models/{offer.id}/inputs"),
        ("GET", "/api/anything"),
        ("POST", "/api/results"),
    ):
        sent = headers | ({"Content-Type": "application/json"} if method == "POST" else {})
        status, answer, _ = server.ask(method, path, body if method == "POST" else None, sent)  # type: ignore[arg-type]
        assert status == 401
        assert "Scan the code" in json.loads(answer)["error"]
    assert not results_of(offer)


def test_what_a_phone_with_the_token_gets(server: Running, offer: Offer) -> None:
    status, body, headers = server.ask("GET", "/api/session")
    (model,) = json.loads(body)["models"]
    assert (status, model["id"], model["sha256"]) == (200, offer.id, offer.artifact.sha256)
    assert headers["cache-control"] == "no-store"
    assert server.ask("GET", f"/api/models/{offer.id}")[1] == offer.artifact.model_path.read_bytes()
    inputs = np.frombuffer(server.ask("GET", f"/api/models/{offer.id}/inputs")[1], np.float32)
    np.testing.assert_array_equal(inputs, offer.probe().inputs.ravel())


def test_every_answer_isolates_the_page(server: Running) -> None:
    for path, status in (("/", 200), ("/worker.js", 200), ("/missing", 404), ("/api/session", 200)):
        found, _, headers = server.ask("GET", path)
        assert found == status
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cross-origin-embedder-policy"] == "require-corp"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "server" not in headers


@pytest.mark.parametrize(
    "path", ["/../../README.md", "/%2e%2e/%2e%2e/LICENSE", "/licences/../../../pyproject.toml", "/web/app.js"]
)
def test_only_the_page_s_own_files_are_served(server: Running, path: str) -> None:
    assert server.ask("GET", path)[0] == 404


@pytest.mark.parametrize("announced", [True, False])
def test_a_huge_body_is_refused_before_it_is_read(server: Running, offer: Offer, announced: bool) -> None:
    connection = server.connect()
    connection.putrequest("POST", "/api/results")
    headers = server.authorized | {"Content-Type": "application/json"}
    headers |= {"Content-Length": str(10**12)} if announced else {"Transfer-Encoding": "chunked"}
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    if not announced:
        chunk = b"%x\r\n%b\r\n" % (50_000, b"[" * 50_000)
        for _ in range(6):
            connection.send(chunk)
    answer = connection.getresponse()
    assert answer.status == 413
    connection.close()
    assert server.post(valid_post(offer))[0] == 201


def test_a_body_that_never_ends_is_given_up(offer: Offer, certificate: Certificate, tmp_path: Path) -> None:
    with running(service_of([offer], tmp_path, limits=Limits(post_seconds=0.3)), certificate) as server:
        connection = server.connect()
        connection.putrequest("POST", "/api/results")
        for name, value in (server.authorized | {"Content-Type": "application/json"}).items():
            connection.putheader(name, value)
        connection.putheader("Content-Length", "1000")
        connection.endheaders()
        connection.send(b"{")
        assert connection.getresponse().status == 408
        connection.close()


def test_a_thousand_malformed_posts_are_refused_and_none_is_kept(server: Running, offer: Offer) -> None:
    chance = random.Random(7)
    post = valid_post(offer)
    connection = server.connect()
    headers = server.authorized | {"Content-Type": "application/json"}
    refused = []
    for _ in range(MALFORMED_POSTS):
        body = malformed(post, chance)
        connection.request("POST", "/api/results", body, headers)
        answer = connection.getresponse()
        said = json.loads(answer.read())
        refused.append(answer.status)
        assert answer.status in (404, 409, 413, 422), (answer.status, said, body[:500])
        assert "Traceback" not in said["error"]
        assert len(said["error"]) < 600
    connection.close()
    assert len(refused) == MALFORMED_POSTS
    assert not results_of(offer)
    assert server.post(post)[0] == 201
    assert len(results_of(offer)) == 1


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"artifact": "0" * 16}, 404, "no such model"),
        ({"artifact": "../../../../etc"}, 422, "artifact"),
        ({"model_sha256": "0" * 64}, 409, "has changed"),
        ({"engine": "litert"}, 422, "is for ort"),
        ({"measurement": None}, 422, "either measurement or not_run"),
        ({"not_run": "no"}, 422, "either measurement or not_run"),
        ({"schema_version": 2}, 422, "schema_version"),
        ({"id": "../x"}, 422, "id"),
        ({"threads": 0}, 422, "threads"),
    ],
)
def test_contradictions_are_named(
    server: Running, offer: Offer, changes: dict[str, Any], status: int, said: str
) -> None:
    found, answer = server.post(valid_post(offer, **changes))
    assert found == status
    assert said in answer["error"]
    assert not results_of(offer)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("samples_ms", []),
        ("samples_ms", [0.0, 0.0]),
        ("samples_ms", [1e308, 1.0]),
        ("sampled_at_s", [0.1]),
        ("sampled_at_s", [4.0, 3.0, 2.0, 1.0]),
        ("probe_logits", []),
        ("probe_logits", [[1e308] * 10] * 3),
        ("load_ms", -1),
        ("statistics", {"p50_ms": 0.1}),
    ],
)
def test_impossible_measurements_are_refused(
    server: Running, offer: Offer, field: str, value: object
) -> None:
    post = valid_post(offer)
    post["measurement"][field] = value
    status, answer = server.post(post)
    kept = results_of(offer)
    if field == "probe_logits" and value:
        assert status == 201  # finite, so it can be compared, and it is wrong
        assert not answer["correctness"]["passed"]
    else:
        assert status == 422
        assert not kept
    for path in kept:
        read_record(path, LatencyReport, "")


def test_names_are_neither_paths_nor_terminal_commands(server: Running, offer: Offer) -> None:
    post = valid_post(offer)
    post["device"] |= {"model": "../../../x/\x1b[2J\x07\nPhone", "browser": "\x1b]0;t\x07B"}
    assert server.post(post)[0] == 201
    (path,) = results_of(offer)
    assert path.parent == offer.artifact.folder.parent / "results"
    report = read_record(path, LatencyReport, "")
    assert report.device.label.isprintable()
    assert "Phone" in report.device.label


def test_why_a_model_did_not_run_is_kept(server: Running, offer: Offer) -> None:
    status, answer = server.post(valid_post(offer, measurement=None, not_run="no\nWebGPU device"))
    assert (status, answer) == (201, {})
    assert read_record(results_of(offer)[0], LatencyReport, "").not_run == "no WebGPU device"


def test_a_flood_is_held_back(offer: Offer, certificate: Certificate, tmp_path: Path) -> None:
    limits = Limits(requests_per_minute=5, results=2)
    with running(service_of([offer], tmp_path, limits=limits), certificate) as server:
        statuses = [server.post(valid_post(offer))[0] for _ in range(7)]
    assert statuses == [201, 201, 429, 429, 429, 429, 429]
    assert len(results_of(offer)) == 2


def test_other_content_than_json_is_refused(server: Running, offer: Offer) -> None:
    body = json.dumps(valid_post(offer)).encode()
    assert server.post(body, **{"Content-Type": "text/plain"})[0] == 415
    assert server.post(gzip.compress(body), **{"Content-Encoding": "gzip"})[0] == 415
    assert server.post(gzip.compress(bytes(50 << 20)), **{"Content-Encoding": "gzip"})[0] == 415
    assert server.post(gzip.compress(body))[0] == 422
    assert server.ask("PUT", "/api/results", body)[0] == 405


def test_noise_on_the_port_does_not_stop_the_server(server: Running, offer: Offer) -> None:
    for noise in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + b"\xff" * 400, bytes(2000)):
        with socket.create_connection(("localhost", server.port), timeout=10) as plain:
            plain.sendall(noise)
    trusting = ssl.create_default_context(cadata=server.certificate.path.read_text())
    for noise in (
        b"NONSENSE\r\n\r\n",
        b"POST /api/results HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"\x00" * 9000,
    ):
        with (
            socket.create_connection(("localhost", server.port), timeout=10) as plain,
            trusting.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            secure.sendall(noise)
    assert server.post(valid_post(offer))[0] == 201


def test_the_certificate_is_kept_private_and_grows_with_the_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MF_DEPLOY_CACHE", str(tmp_path))
    first = certificate_for(["192.168.1.20"])
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o600
    assert certificate_for(["192.168.1.20"]).fingerprint == first.fingerprint
    second = certificate_for(["10.0.0.7"])
    assert second.fingerprint != first.fingerprint
    assert certificate_for(["192.168.1.20", "10.0.0.7"]).fingerprint == second.fingerprint
    first.path.write_text("not a certificate")
    assert certificate_for(["10.0.0.7"]).fingerprint not in (first.fingerprint, second.fingerprint)


def test_only_what_browsers_run_is_offered(tmp_path: Path) -> None:
    made = [
        write_tiny_artifact(tmp_path / "tiny" / "onnx-fp32"),
        write_tiny_artifact(tmp_path / "tiny" / "tflite-fp32", target="tflite"),
        write_tiny_artifact(tmp_path / "tiny" / "coreml-fp32", target="coreml"),
    ]
    assert [offer.artifact.name for offer in offers_of(made)] == ["onnx-fp32", "tflite-fp32"]
    assert isinstance(made[0], Artifact)
    assert len({offer.id for offer in offers_of(made)}) == 2
