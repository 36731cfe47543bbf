"""Count the ARM instructions of any model file: ``python -m mf_deploy.runtimes.arm FILE --cpu CPU``."""

from pathlib import Path

import click

from mf_deploy.cli.command import run_command
from mf_deploy.runtimes.arm import CPUS
from mf_deploy.runtimes.arm.emulator import Emulator, median_counts
from mf_deploy.runtimes.arm.lab import open_lab


@click.command(name="python -m mf_deploy.runtimes.arm")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--cpu", type=click.Choice(list(CPUS)), default="cortex-a76", show_default=True)
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True)
def main(files: tuple[Path, ...], cpu: str, runs: int) -> None:
    """ARM instructions of one inference of each .onnx or .tflite file, by class; emulated, 1 thread."""
    lab = open_lab()
    for file in files:
        with Emulator(lab, cpu, file, counting=True) as emulator:
            regions = emulator.count(emulator.random_inputs(), runs=runs)
        counts = median_counts(regions)
        classes = "  ".join(f"{name} {value / 1e6:.2f}" for name, value in counts.items())
        click.echo(f"{sum(counts.values()) / 1e6:8.2f} M  {classes}  {file}")


if __name__ == "__main__":
    run_command(main)
