"""A benchmark server in a thread of the test, and a client that trusts its certificate and nothing else."""

import asyncio
import http.client
import json
import queue
import secrets
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from mf_deploy.benchmarks.server.app import Service
from mf_deploy.benchmarks.server.certificate import Certificate
from mf_deploy.benchmarks.server.engines import Engines, set_up
from mf_deploy.benchmarks.server.listen import listening
from mf_deploy.errors import MfDeployError


@dataclass
class Running:
    """A server that answers on this machine."""

    service: Service
    port: int
    certificate: Certificate

    @property
    def authorized(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.service.token}"}

    def connect(self) -> http.client.HTTPSConnection:
        trusting = ssl.create_default_context(cadata=self.certificate.path.read_text())
        return http.client.HTTPSConnection("localhost", self.port, context=trusting, timeout=60)

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers; with the token unless ``headers`` say otherwise."""
        connection = self.connect()
        try:
            connection.request(
                method, path, body=body, headers=self.authorized if headers is None else headers
            )
            answer = connection.getresponse()
            return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()

    def post(self, post: dict[str, Any] | bytes, **headers: str) -> tuple[int, dict[str, Any]]:
        """Post a result as a phone does."""
        body = post if isinstance(post, bytes) else json.dumps(post).encode()
        status, answer, _ = self.ask(
            "POST", "/api/results", body, self.authorized | {"Content-Type": "application/json"} | headers
        )
        return status, json.loads(answer)


@contextmanager
def running(service: Service, certificate: Certificate) -> Iterator[Running]:
    """Serve on a free port of this machine while the block runs."""
    started: queue.Queue[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()

    async def serve() -> None:
        stop = asyncio.Event()
        async with listening(service.application(), "localhost", 0, certificate.context()) as port:
            started.put((port, asyncio.get_running_loop(), stop))
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    port, loop, stop = started.get(timeout=30)
    try:
        yield Running(service, port, certificate)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)


def valid_post(offer: Any, **changes: Any) -> dict[str, Any]:
    """What a phone posts that has measured ``offer`` and computed the right logits."""
    return {
        "schema_version": 1,
        "id": secrets.token_hex(16),
        "artifact": offer.id,
        "model_sha256": offer.artifact.sha256,
        "engine": offer.engine,
        "accelerator": "wasm",
        "threads": 2,
        "protocol": {"min_runs": 4, "min_seconds": 0},
        "device": {
            "model": "Pixel 8",
            "os": "Android 15",
            "browser": "Google Chrome 141",
            "architecture": "arm 64 bit",
            "cores": 9,
            "memory_bytes": 8 << 30,
        },
        "measurement": {
            "accelerator_used": "wasm",
            "load_ms": 120.5,
            "first_inference_ms": 30.25,
            "warmup_ms": [12.0],
            "samples_ms": [10.0, 11.0, 12.0, 15.0],
            "sampled_at_s": [0.01, 0.021, 0.033, 0.048],
            "kept_every": 1,
            "timer_resolution_ms": 0.005,
            "before": {"battery_percent": 80, "charging": False},
            "after": {"battery_percent": 79, "charging": False},
            "probe_logits": offer.probe().expected.tolist(),
            "partial": None,
        },
        "not_run": None,
    } | changes


def engines_or_skip() -> Engines:
    """The engines for browsers in this machine's cache, fetched now if they are not there."""
    try:
        return set_up()
    except MfDeployError as error:
        pytest.skip(str(error))
