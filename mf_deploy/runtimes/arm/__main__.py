"""Count the ARM instructions of any model file: ``python -m mf_deploy.runtimes.arm FILE --cpu CPU``."""

from collections import defaultdict
from pathlib import Path

import click

from mf_deploy.cli.command import run_command
from mf_deploy.runtimes.arm import CPUS
from mf_deploy.runtimes.arm.counting import Operator, count_inference, count_operators, median, total
from mf_deploy.runtimes.arm.lab import open_lab


@click.command(name="python -m mf_deploy.runtimes.arm")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--cpu", type=click.Choice(list(CPUS)), default="cortex-a76", show_default=True)
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True)
@click.option("--per-op", is_flag=True, help="By kind of operator.")
@click.option("--each", is_flag=True, help="Each operator, in the order of execution.")
def main(files: tuple[Path, ...], cpu: str, runs: int, per_op: bool, each: bool) -> None:
    """ARM instructions of one inference of each .onnx or .tflite file, by class; emulated, 1 thread."""
    lab = open_lab()
    for file in files:
        counted, inputs = count_inference(lab, cpu, file, runs)
        counts = median(counted)
        classes = "  ".join(f"{name} {value / 1e6:.2f}" for name, value in counts.items() if value)
        click.echo(f"{total(counts) / 1e6:8.3f} M  {classes}  {file}")
        operators = count_operators(lab, cpu, file, inputs, counts) if per_op or each else []
        if each:
            for i, of in enumerate(operators):
                shape = "x".join(map(str, of.shape))
                click.echo(f"{total(of.counts) / 1e3:10.1f} k  {i:4d} {of.kind:36} {shape:18} {of.name}")
        if per_op:
            _by_kind(operators, total(counts))


def _by_kind(operators: list[Operator], whole: int) -> None:
    kinds: defaultdict[str, list[int]] = defaultdict(list)
    for of in operators:
        kinds[of.kind].append(total(of.counts))
    kinds["between operators"] = [whole - sum(total(of.counts) for of in operators)]
    for kind, each in sorted(kinds.items(), key=lambda item: -sum(item[1])):
        click.echo(f"{sum(each) / 1e6:8.3f} M  {sum(each) / whole:6.1%}  {len(each):5d} x  {kind}")


if __name__ == "__main__":
    run_command(main)
