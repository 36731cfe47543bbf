"""mf-bench bundle: artifacts with their probes, for apps that run where this computer is not."""

from pathlib import Path

import click

from mf_deploy.errors import MfDeployError

EPILOG = """\b
Examples:
  mf-bench bundle runs/mobile_former_26m --out apps/ios/Models
"""


@click.command("mf-bench bundle", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option("--out", metavar="DIR", required=True, type=click.Path(path_type=Path), help="Where to.")
@click.option("--target", type=click.Choice(["onnx", "coreml", "tflite"]), help="Only these.  [default: all]")
def bundle(runs: tuple[Path, ...], out: Path, target: str | None) -> None:
    """Copy artifacts to DIR/<model folder>/<artifact>, each with its probe.

    The probe is a few fixed inputs and the logits that this computer makes of them, so that an app on a phone
    can tell a model that is fast because it is wrong. What is there under the same name is replaced.
    """
    from mf_deploy.artifact import find_artifacts
    from mf_deploy.benchmarks.probe_files import copy_with_probe

    artifacts = [artifact for run in runs for artifact in find_artifacts(run.resolve())]
    chosen = [artifact for artifact in artifacts if target in (None, artifact.manifest.target)]
    if not chosen:
        what, fix = f"Nothing to bundle for {target}", f"Make one with: mf-export MODEL --target {target}"
        raise MfDeployError(what, "there is no such artifact", fix)
    for artifact in chosen:
        folder = out / artifact.folder.parent.name / artifact.name
        copy_with_probe(artifact, folder)
        click.echo(folder)
