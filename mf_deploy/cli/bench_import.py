"""mf-bench import: take in the results that an app, a colleague or another computer has written."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mf_deploy.errors import BAD_INPUT, MfDeployError

if TYPE_CHECKING:
    from mf_deploy.artifact import Artifact
    from mf_deploy.benchmarks.latency import LatencyReport

EPILOG = """\b
Examples:
  mf-bench import result.json
  mf-bench import ~/Downloads/*.json --to runs/mobile_former_294m
"""


@click.command("mf-bench import", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "folder",
    metavar="DIR",
    default="runs",
    show_default=True,
    type=click.Path(path_type=Path),
    help="A model folder, a folder of those, or an artifact folder.",
)
def import_results(files: tuple[Path, ...], folder: Path) -> int:
    """Keep results that were measured elsewhere beside the artifacts that they are about.

    FILE holds one result, a list of them, or what mf-bench --json writes. A result finds its artifact by the
    sha256 of the model file. Its figures must follow from its samples, and the logits that it brings are
    compared with those of this computer. A result that is there already is left as it is.
    """
    from mf_deploy.artifact import Artifact, artifact_folders, check_writable, find_artifacts
    from mf_deploy.benchmarks.imports import read_reports

    artifacts = [Artifact.open(path) for path in artifact_folders(folder)] or find_artifacts(folder)
    for run in {artifact.folder.parent for artifact in artifacts}:
        check_writable(run / "results" / "bench", force=True)
    refused = 0
    for file in files:
        try:
            reports = read_reports(file)
        except MfDeployError as error:
            click.echo(f"error: {error}", err=True)
            refused += 1
            continue
        for report in reports:
            try:
                click.echo(_import(report, artifacts))
            except MfDeployError as error:
                click.echo(f"error: {file}: {error}", err=True)
                refused += 1
    return BAD_INPUT if refused else 0


def _import(report: "LatencyReport", artifacts: "list[Artifact]") -> str:
    """Store one report; returns what to say about it.

    Raises:
        MfDeployError: it belongs to no artifact, or cannot be true.
    """
    from mf_deploy.benchmarks.imports import accept, owner, result_name
    from mf_deploy.report.results import result_path, save_result

    artifact = owner(report, artifacts)
    run, name = artifact.folder.parent, result_name(report, artifact)
    path = result_path(run, name)
    where = f"{run.name}/{artifact.name} on {report.device.label} ({report.kind})"
    if path.exists():
        return f"{where}: already there"
    accepted = accept(report, artifact)
    save_result(run, name, accepted)
    if accepted.measurement is None:
        return f"{where}: not run: {accepted.not_run}"
    verdict = accepted.measurement.correctness
    if verdict is None:
        answers = "logits not checked"
    else:
        answers = "logits as on the host" if verdict.passed else "WRONG LOGITS"
    return f"{where}: p90 {accepted.measurement.statistics.p90_ms:.3g} ms, {answers}"
