"""The HTTP side of the benchmark app: the page, the models, and what phones post."""

import asyncio
import hmac
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import hdrs, web
from pydantic import ValidationError

from mf_deploy.benchmarks.latency import LatencyReport
from mf_deploy.benchmarks.protocol import Protocol
from mf_deploy.benchmarks.server.engines import Engines
from mf_deploy.benchmarks.server.offers import Offer
from mf_deploy.benchmarks.server.posts import ENGINES, Post
from mf_deploy.errors import MfDeployError

PAGE = Path(__file__).with_name("web")  # apps/web, which the package carries
MAX_DEVICES = 1024  # addresses that are counted at a time

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
}

# Threads and precise clocks need cross-origin isolation: opener and embedder policy together.
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; "
        "style-src 'self'; img-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
KEEP, REVALIDATE, NEVER = "public, max-age=31536000, immutable", "no-cache", "no-store"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Limits:
    """What one device and all of them together may ask for."""

    post_bytes: int = 8 << 20
    post_seconds: float = 60.0
    requests_per_minute: int = 600
    results: int = 1000


@dataclass(frozen=True)
class Received:
    """A result that is to be saved under ``name``, which ends in ``id``, in the model folder ``run``."""

    run: Path
    name: str
    id: str
    report: LatencyReport


@dataclass
class Service:
    """What the server offers, and to whom.

    ``keep`` saves a result and says whether it is new; it is called for one result at a time.
    """

    offers: list[Offer]
    engines: Engines
    token: str
    protocols: dict[str, Protocol]
    keep: Callable[[Received], bool]
    limits: Limits = field(default_factory=Limits)
    _saved: dict[str, dict[str, object]] = field(default_factory=dict)
    _saving: threading.Lock = field(default_factory=threading.Lock)
    _asked: dict[str, deque[float]] = field(default_factory=dict)

    def application(self) -> web.Application:
        """The routes: files known by name at the start, and an API that needs the token."""
        app = web.Application(middlewares=[self._guard], client_max_size=self.limits.post_bytes)
        app.on_response_prepare.append(_add_headers)
        for path in sorted(PAGE.rglob("*")):
            if path.is_file():
                name = path.relative_to(PAGE).as_posix()
                app.router.add_get("/" + ("" if name == "index.html" else name), _file(path, REVALIDATE))
        for file in self.engines.record.files:
            path = self.engines.folder / file.name
            app.router.add_get(f"{self._engines_url}/{file.name}", _file(path, KEEP))
        app.router.add_get("/api/session", self._session)
        app.router.add_get("/api/models/{id}", self._model)
        app.router.add_get("/api/models/{id}/inputs", self._inputs)
        app.router.add_post("/api/results", self._result)
        return app

    @property
    def _engines_url(self) -> str:
        return f"/engines/{self.engines.digest}"

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count what an address asks of the API, check the token, and make one line of every refusal."""
        try:
            if request.path.startswith("/api/"):
                self._count(request.remote or "")
                given = request.headers.get(hdrs.AUTHORIZATION, "").encode("utf-8", "surrogateescape")
                if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
                    return _refusal(401, "Scan the code in the terminal again: this page has another token.")
            return await handler(request)
        except web.HTTPException as error:
            return _refusal(error.status, error.reason)
        except MfDeployError as error:
            return _refusal(503, str(error))

    def _count(self, address: str) -> None:
        now = time.monotonic()
        while len(self._asked) > MAX_DEVICES:
            del self._asked[next(iter(self._asked))]
        asked = self._asked.setdefault(address, deque())
        while asked and now - asked[0] > 60:
            asked.popleft()
        if len(asked) >= self.limits.requests_per_minute:
            raise web.HTTPTooManyRequests(reason="Too many requests. Wait a minute.")
        asked.append(now)

    async def _session(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "models": [offer.describe() for offer in self.offers],
                "protocols": {name: protocol.model_dump() for name, protocol in self.protocols.items()},
                "engines": self._engines_url,
                "packages": [package.model_dump() for package in self.engines.record.packages],
            }
        )

    async def _model(self, request: web.Request) -> web.StreamResponse:
        path = self._offer(request.match_info["id"]).artifact.model_path
        return web.FileResponse(path, headers={"Content-Type": "application/octet-stream"})

    async def _inputs(self, request: web.Request) -> web.Response:
        probe = await asyncio.to_thread(self._offer(request.match_info["id"]).probe)
        return web.Response(body=probe.inputs.tobytes(), content_type="application/octet-stream")

    def _offer(self, id: str) -> Offer:
        for offer in self.offers:
            if offer.id == id:
                return offer
        raise web.HTTPNotFound(reason="There is no such model here. Load the page again.")

    async def _result(self, request: web.Request) -> web.Response:
        if request.content_type != "application/json" or hdrs.CONTENT_ENCODING in request.headers:
            raise web.HTTPUnsupportedMediaType(reason="Post JSON, not compressed.")
        if (request.content_length or 0) > self.limits.post_bytes:
            # Unread, so that the rest is not waited for.
            return _refusal(413, f"Larger than {self.limits.post_bytes} bytes.", close=True)
        try:
            async with asyncio.timeout(self.limits.post_seconds):
                body = await request.read()
        except TimeoutError:
            raise web.HTTPRequestTimeout(reason="The post took too long.") from None
        return await asyncio.to_thread(self._keep, body)

    def _keep(self, body: bytes) -> web.Response:
        """Check, judge and save one post; the same post again gets the same answer and is saved once."""
        try:
            post = Post.model_validate_json(body)
            offer = self._offer(post.artifact)
            if post.model_sha256 != offer.artifact.sha256:
                raise web.HTTPConflict(reason="The model has changed. Load the page again.")
            if post.engine != offer.engine:
                raise ValueError(f"engine: {offer.artifact.name} is for {offer.engine}")
            report = post.report(offer, self.engines.version(ENGINES[post.engine][1]))
        except ValueError as error:
            return _refusal(422, _first(error) if isinstance(error, ValidationError) else str(error))
        with self._saving:
            if post.id in self._saved:
                return web.json_response(self._saved[post.id], status=200)
            if len(self._saved) >= self.limits.results:
                raise web.HTTPTooManyRequests(reason="This server keeps no more results. Start it again.")
            run, name = offer.artifact.folder.parent, post.result_name(offer)
            new = self.keep(Received(run, name, post.id, report))
            self._saved[post.id] = answer = _answer(report)
        return web.json_response(answer, status=201 if new else 200)


def _file(path: Path, caching: str) -> Handler:
    headers = {"Content-Type": TYPES.get(path.suffix, "application/octet-stream"), "Cache-Control": caching}

    async def send(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(path, headers=headers)

    return send


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        response.headers[name] = value
    response.headers.setdefault("Cache-Control", NEVER)
    response.headers.pop("Server", None)


def _refusal(status: int, why: str, close: bool = False) -> web.Response:
    response = web.json_response({"error": why}, status=status)
    if close:
        response.force_close()
    return response


def _answer(report: LatencyReport) -> dict[str, object]:
    """What the phone shows of its result: the host's statistics and verdict."""
    measured = report.measurement
    return measured.model_dump(include={"statistics", "correctness"}) if measured else {}


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, without the value that was posted."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])[:200]
    return f"{where or 'the post'}: {first['msg'][:300]}"
