"""mf-report: one page about all artifacts and results of a folder."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mf_deploy.cli.command import console, run_command
from mf_deploy.errors import GATE_FAILED, MfDeployError

if TYPE_CHECKING:
    from mf_deploy.report import Collection, Comparison

FORMATS = (".html", ".md", ".csv")
TABLE_WIDTH = 100  # columns; a narrower terminal wraps the lines, no figure is cut off

EPILOG = """\b
Examples:
  mf-report runs/mobile_former_294m
  mf-report runs --out results.md
  mf-report runs --baseline runs-of-last-release
"""


@click.command("mf-report", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="A .html, .md or .csv file.  [default: DIR/report.html]"
)
@click.option(
    "--baseline",
    metavar="OLD",
    type=click.Path(path_type=Path),
    help="An earlier DIR: mark what got worse by more than the noise; exit code 1 if anything did.",
)
def report(folder: Path, out: Path | None, baseline: Path | None) -> int:
    """Put the results in DIR on one page: accuracy, latency, size, and where every figure comes from.

    DIR is a model folder, a folder of those, or an artifact folder. The page needs no network and no
    other file. Results are those of mf-check, mf-bench, mf-bench serve and mf-bench import.
    """
    from mf_deploy.artifact import check_writable, write_whole
    from mf_deploy.report import collect, compare, render

    out = out or folder / "report.html"
    if out.suffix not in FORMATS:
        raise MfDeployError(
            f"Cannot write {out}", f"its ending is not {', '.join(FORMATS)}", "Give another --out."
        )
    collection = collect(folder)
    comparison = compare(collection, collect(baseline)) if baseline else None
    check_writable(out, force=True)
    write_whole(out, render(collection, out.suffix, comparison).encode())
    for problem in collection.problems:
        click.echo(f"left out: {problem}", err=True)
    _print_table(collection)
    measured = sum(bool(entry.accuracy or entry.latency) for entry in collection.entries)
    for line in [*_wrong_logits(collection), *(_comparison_lines(comparison) if comparison else [])]:
        click.echo(line)
    click.echo(f"{out}: {len(collection.entries)} artifacts, {measured} of them measured")
    return GATE_FAILED if comparison and comparison.worse else 0


def _wrong_logits(collection: "Collection") -> list[str]:
    return [
        f"WRONG LOGITS: {collection.label(entry)} on {setting}"
        for entry in collection.entries
        for setting in entry.latency
        if entry.wrong_on(setting)
    ]


def _comparison_lines(comparison: "Comparison") -> list[str]:
    """What got worse or better than the baseline.

    Raises:
        MfDeployError: nothing has a counterpart there.
    """
    if not comparison.changes:
        why = "no artifact here is in it under the same run and name"
        raise MfDeployError("Cannot compare with the baseline", why, "Give the folder of the same run.")
    lines = [f"not compared: {line}" for line in comparison.missing]
    for of in comparison.changes:
        if of.verdict in ("worse", "better"):
            interval = f" ({of.interval})" if of.interval else ""
            where = f", {of.setting}" if of.setting else ""
            lines.append(
                f"{of.verdict}: {of.artifact}: {of.figure} {of.old} → {of.new}, {of.change}{interval}{where}"
            )
    total = len(comparison.changes)
    return [*lines, f"Against the baseline: {len(comparison.worse)} of {total} figures worse"]


def _print_table(collection: "Collection") -> None:
    """The page's main table, without its intervals: those of mf-check and mf-bench have them."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from mf_deploy.report.summary import percent, summarize

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("artifact", no_wrap=True)
    for header in ("top-1 %", "drop\npoints", "agree-\nment %", "SQNR\ndB", "p50\nms", "p90\nms", "size\nMB"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("run by", no_wrap=True)
    for entry in collection.references:
        assert entry.accuracy is not None
        name = f"{entry.artifact.folder.parent.name}/" if collection.several_models else ""
        table.add_row(Text(f"{name}PyTorch"), percent(entry.accuracy.reference_top1).text)
    for row in summarize(collection):
        cells = (row.top1, row.drop, row.agreement, row.sqnr, row.p50, row.p90, row.size)
        engines = dict.fromkeys(f"{source.engine} ({source.kind})" for source in row.provenance)
        table.add_row(Text(row.label), *(cell.text for cell in cells), ", ".join(engines) or "not measured")
    out = console()
    out.width = max(out.width, TABLE_WIDTH)
    out.print(table)


def main() -> None:
    run_command(report)


if __name__ == "__main__":
    main()
