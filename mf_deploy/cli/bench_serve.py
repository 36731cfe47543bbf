"""mf-bench serve: the benchmark app in a phone's browser, and the results that come back."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mf_deploy.errors import MfDeployError

if TYPE_CHECKING:
    from mf_deploy.benchmarks.protocol import Protocol
    from mf_deploy.benchmarks.server.app import Received, Service

EVERYWHERE, ONLY_HERE = "0.0.0.0", "127.0.0.1"
SUSTAINED_SECONDS = 1800.0
COOL_DOWN_SECONDS = 30.0

EPILOG = """\b
Examples:
  mf-bench serve runs/mobile_former_294m
  mf-bench serve runs/mobile_former_294m/onnx-w8a8 --quick
  mf-bench serve runs/mobile_former_294m --http    with: adb reverse tcp:8443 tcp:8443
"""


@click.command("mf-bench serve", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), default=8443, show_default=True)
@click.option("--host", help="Address to listen on.  [default: all of this machine's]")
@click.option("--http", is_flag=True, help="Without TLS, for this machine alone: with adb reverse.")
@click.option("--quick", is_flag=True, help="Propose 200 inferences a model in place of 1,024 and 60 s.")
def serve(runs: tuple[Path, ...], port: int, host: str | None, http: bool, quick: bool) -> None:
    """Serve the benchmark app to phones: scan the code, choose models, measure; results come back here.

    RUN is an artifact folder, or a model folder with artifacts in it. ONNX and TFLite artifacts run in the
    browser, Android's or the iPhone's. Results are kept in the model folder's results/, where mf-report
    finds them, and judged by their logits. mf-deploy setup web fetches the engines, once.

    The certificate is self-made: accept it on the phone once, after a look at its fingerprint. Only who has
    the code, which holds a token, gets models and may post. Ctrl-C ends it.
    """
    import asyncio
    import secrets

    from mf_deploy.artifact import check_writable, find_artifacts
    from mf_deploy.errors import require

    for module in ("aiohttp", "cryptography", "segno"):
        require(module, "serve")
    from mf_deploy.benchmarks.server.app import Service
    from mf_deploy.benchmarks.server.engines import open_engines
    from mf_deploy.benchmarks.server.offers import offers_of

    if http and host not in (None, "localhost", ONLY_HERE):
        raise MfDeployError(
            f"Cannot serve {host} with --http",
            "browsers give threads and WebGPU only to HTTPS and to localhost",
            "Leave one of them out.",
        )
    engines = open_engines()
    artifacts = list({a.folder: a for run in runs for a in find_artifacts(run.resolve())}.values())
    offers = offers_of(artifacts)
    if not offers:
        what, why = "Nothing to serve", "browsers run ONNX and TFLite with float logits, batch 5 at most"
        raise MfDeployError(what, why, "Export with --target onnx or --target tflite.")
    for folder in {offer.artifact.folder.parent for offer in offers}:
        check_writable(folder / "results" / "bench", force=True)
    asked, token = _protocols(quick), secrets.token_urlsafe(16)
    service = Service(offers, engines, token, asked, keep_result)
    asyncio.run(_serve(service, host or (ONLY_HERE if http else EVERYWHERE), port, http))


def keep_result(result: "Received") -> bool:
    """Save a result beside its artifacts, unless it is there from an earlier run of the server."""
    from mf_deploy.report.results import result_path, save_result

    if any(result_path(result.run, result.name).parent.glob(f"*-{result.id}.json")):
        return False
    save_result(result.run, result.name, result.report)
    return True


def _protocols(quick: bool) -> "dict[str, Protocol]":
    """What the page offers; the first one is chosen already."""
    from mf_deploy.benchmarks.protocol import Protocol

    lengths = {
        "full": Protocol.single_stream(cool_down_seconds=COOL_DOWN_SECONDS),
        "quick": Protocol.quick(),
        "sustained": Protocol.sustained(SUSTAINED_SECONDS, cool_down_seconds=COOL_DOWN_SECONDS),
    }
    return {"quick": lengths["quick"], **lengths} if quick else lengths


async def _serve(service: "Service", host: str, port: int, http: bool) -> None:
    """Answer until Ctrl-C; every result is a line, and all of them a table at the end."""
    import asyncio
    import signal

    from mf_deploy.benchmarks.server.certificate import certificate_for, lan_addresses
    from mf_deploy.benchmarks.server.listen import listening, url_of

    stop, loop, rows = asyncio.Event(), asyncio.get_running_loop(), list[list[str]]()

    def keep(result: "Received") -> bool:
        new = keep_result(result)
        if new:
            rows.append(_row(result))
            loop.call_soon_threadsafe(click.echo, _line(result))
        return new

    service.keep = keep
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    addresses = [] if http else (lan_addresses() if host == EVERYWHERE else [host])
    certificate = None if http else certificate_for(addresses)
    context = certificate.context() if certificate else None
    async with listening(service.application(), host, port, context) as bound:
        urls = [url_of(name, bound, service.token, not http) for name in addresses or ["localhost"]]
        _invite(urls, certificate.fingerprint if certificate else None)
        await stop.wait()
        click.echo("Stopping ...", err=True)
    if rows:
        _print_table(rows)


def _invite(urls: list[str], fingerprint: str | None) -> None:
    """Say how a phone gets here."""
    import sys

    import segno

    if sys.stdout.isatty():
        segno.make(urls[0], error="m").terminal(compact=True)
    click.echo(f"Open on the phone: {urls[0]}")
    for url in urls[1:]:
        click.echo(f"               or: {url}")
    if fingerprint:
        click.echo(f"The phone warns of the self-made certificate once. Its SHA-256: {fingerprint}")
    click.echo("Waiting for results; Ctrl-C ends it.")
    sys.stdout.flush()


def _line(result: "Received") -> str:
    """One result as it arrives."""
    from mf_deploy.report.figures import digits

    report = result.report
    what = f"{report.device.label}: {report.model}/{report.artifact}"
    measured = report.measurement
    if measured is None:
        return f"{what}: not run: {report.not_run}"
    used = f"{measured.engine.name}, {measured.accelerator_used}, threads {report.threads}"
    of, ended = measured.statistics, f"; ended early: {measured.partial}" if measured.partial else ""
    return (
        f"{what}: p50 {digits(of.p50_ms)} ms, p90 {digits(of.p90_ms)} ms ({used}); {_verdict(result)}{ended}"
    )


def _verdict(result: "Received") -> str:
    """Whether the phone's answers were right."""
    found = result.report.measurement.correctness if result.report.measurement else None
    if found is None:
        return ""
    if found.max_abs_error is None:
        return "WRONG answers, not comparable"
    return f"{'right' if found.passed else 'WRONG'} to {found.max_abs_error:.1e} of {found.tolerance:.1e}"


def _row(result: "Received") -> list[str]:
    """One result in the table at the end."""
    from mf_deploy.report.figures import digits

    report, measured = result.report, result.report.measurement
    cells = [f"{report.model}/{report.artifact}", report.device.label]
    if measured is None:
        return [*cells, "", str(report.threads), "", "", "", "", f"not run: {report.not_run}"]
    of = measured.statistics
    times = (measured.load_ms, measured.first_inference_ms, of.p50_ms, of.p90_ms)
    engine = f"{measured.engine.name}, {measured.accelerator_used}"
    return [*cells, engine, str(report.threads), *map(digits, times), _verdict(result)]


def _print_table(rows: list[list[str]]) -> None:
    """All results of this server."""
    from rich import box
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    from mf_deploy.cli.command import console

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for header in ("artifact", "device", "engine"):
        table.add_column(header, no_wrap=True)
    for header in ("thr", "load\nms", "first\nms", "p50\nms", "p90\nms"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("answers", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    out = console()
    out.width = max(out.width, Measurement.get(out, out.options.update(max_width=1000), table).maximum)
    out.print(table, crop=False)
