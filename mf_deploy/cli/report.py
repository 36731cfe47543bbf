"""mf-report: one page about all artifacts and results of a folder."""

from pathlib import Path

import click

from mf_deploy.cli.command import run_command
from mf_deploy.errors import MfDeployError

FORMATS = (".html", ".md", ".csv")


@click.command("mf-report")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="A .html, .md or .csv file.  [default: DIR/report.html]"
)
def report(folder: Path, out: Path | None) -> None:
    """Put the results in DIR on one page: accuracy, latency, size, and where every figure comes from.

    DIR is a model folder, a folder of those, or an artifact folder. The page needs no network and no
    other file. Results are those of mf-check and mf-bench.
    """
    from mf_deploy.artifact import check_writable, write_whole
    from mf_deploy.report import collect, render

    out = out or folder / "report.html"
    if out.suffix not in FORMATS:
        raise MfDeployError(
            f"Cannot write {out}", f"its ending is not {', '.join(FORMATS)}", "Give another --out."
        )
    collection = collect(folder)
    check_writable(out, force=True)
    write_whole(out, render(collection, out.suffix).encode())
    for problem in collection.problems:
        click.echo(f"left out: {problem}", err=True)
    measured = sum(bool(entry.accuracy or entry.latency) for entry in collection.entries)
    click.echo(f"{out}: {len(collection.entries)} artifacts, {measured} of them measured")


def main() -> None:
    run_command(report)


if __name__ == "__main__":
    main()
