"""mf-bench --device arm:CPU: instructions in place of times."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mf_deploy.cli.bench import write_json
from mf_deploy.errors import MISSING_TOOL, MfDeployError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from mf_deploy.artifact import Artifact
    from mf_deploy.benchmarks.devices.arm import Arm
    from mf_deploy.benchmarks.instructions import InstructionReport, OperatorInstructions

DEFAULT_RUNS = 3
MOST_EXPENSIVE = 12
MILLION = 1e6


def count_all(
    artifacts: "Sequence[Artifact]",
    partners: "Mapping[Path, Artifact]",
    device: "Arm",
    runs: int,
    per_op: bool,
    json_file: str | None,
) -> int:
    """Count each artifact and its partner, keep and print the results; returns the exit code."""
    from mf_deploy.benchmarks.instructions import InstructionReports

    job = _Job(device, runs, per_op)
    reports = [job.count(artifact) for artifact in artifacts]
    against = {a.name: job.count(partners[a.folder]) for a in artifacts if a.folder in partners}
    write_json(json_file, InstructionReports(reports=reports))
    out = _console(json_file)
    _print_counts(out, reports, against)
    for report in reports:
        if report.operators:
            _print_operators(out, report, report.operators)
    for line in _notes(reports):
        _line(out, line)
    return max(job.exit_codes, default=0 if any(report.instructions for report in reports) else MISSING_TOOL)


class _Job:
    """Counts artifacts, each once; a failure becomes a report without counts, and an exit code."""

    def __init__(self, device: "Arm", runs: int, per_op: bool) -> None:
        self.device, self.runs, self.per_op = device, runs, per_op
        self.exit_codes: list[int] = []
        self._known: dict[Path, InstructionReport] = {}

    def count(self, artifact: "Artifact") -> "InstructionReport":
        from rich.console import Console

        if artifact.folder not in self._known:
            with Console(stderr=True).status(f"{artifact.name} on {self.device.name}"):
                self._known[artifact.folder] = self._count(artifact)
        return self._known[artifact.folder]

    def _count(self, artifact: "Artifact") -> "InstructionReport":
        from mf_deploy.report.results import save_result

        try:
            report = self.device.count(artifact, self.runs, self.per_op)
        except MfDeployError as error:
            self.exit_codes.append(error.exit_code)
            return self.device.not_run(artifact, str(error))
        if report.instructions:
            name = f"instructions-{artifact.name}-{self.device.slug}"
            save_result(artifact.folder.parent, name, report)
        return report


def _print_counts(
    out: "Console", reports: "list[InstructionReport]", against: "dict[str, InstructionReport]"
) -> None:
    table = _table(
        "artifact", "M instr.", "per MAC", "fmla", "dot", "mmla", "simd", "memory", "branch", "other"
    )
    if against:
        table.add_column("ratio", justify="right", no_wrap=True)
    for report in reports:
        of, partner = report.instructions, against.get(report.artifact)
        if of is None:
            table.add_row(report.artifact, "not run")
            continue
        row = [report.artifact, _millions(of.total), f"{report.per_mac:.2f}" if report.per_mac else ""]
        row += [_millions(value) if value else "" for _, value in of]
        if partner and partner.instructions:
            row.append(f"{of.total / partner.instructions.total:.3f}")
        table.add_row(*row)
    _print_whole(out, table)


def _print_operators(
    out: "Console", report: "InstructionReport", operators: "list[OperatorInstructions]"
) -> None:
    """By kind of operator, and the most expensive single ones."""
    whole = report.instructions.total if report.instructions else 0
    kinds: defaultdict[str, list[int]] = defaultdict(list)
    for of in operators:
        kinds[of.kind].append(of.instructions.total)
    kinds["between operators"] = [max(0, whole - sum(of.instructions.total for of in operators))]
    table = _table(f"{report.artifact}: operator", "number", "M instr.", "%")
    for kind, values in sorted(kinds.items(), key=lambda item: -sum(item[1])):
        number = str(len(values)) if kind != "between operators" else ""
        table.add_row(kind, number, f"{sum(values) / MILLION:.3f}", f"{100 * sum(values) / whole:.1f}")
    _print_whole(out, table)
    table = _table(f"{report.artifact}: most expensive", "M instr.", "%", "output", "name")
    ranked = sorted(enumerate(operators), key=lambda item: -item[1].instructions.total)
    for index, of in ranked[:MOST_EXPENSIVE]:
        total, shape = of.instructions.total, "×".join(map(str, of.shape))
        table.add_row(
            f"{index} {of.kind}", _millions(total), f"{100 * total / whole:.1f}", shape, of.name[-60:]
        )
    _print_whole(out, table)


def _notes(reports: "list[InstructionReport]") -> list[str]:
    engines = {f"{report.engine.name} {report.engine.version}" for report in reports if report.engine}
    reasons = [f"{report.artifact}: not run: {report.not_run}" for report in reports if report.not_run]
    if not engines:
        return reasons
    first = reports[0]
    return [
        *reasons,
        f"Instructions of one inference on {first.device}, emulated by {first.emulator}, 1 thread,"
        f" {', '.join(sorted(engines))}: the median of {max(len(r.totals) for r in reports)}"
        " after the first.",
        "Instructions are work, not time: how long they take is for a phone to say.",
    ]


def _millions(value: int) -> str:
    return f"{value / MILLION:.2f}"


def _table(first: str, *others: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(first, no_wrap=True)
    for header in others:
        table.add_column(header, justify="left" if header in ("output", "name") else "right", no_wrap=True)
    return table


def _print_whole(out: "Console", table: "Table") -> None:
    """Print a table with all its figures, also where it is wider than the terminal."""
    from rich.measure import Measurement

    needed = Measurement.get(out, out.options.update(max_width=1000), table).maximum
    out.width = max(out.width, needed)
    out.print(table, crop=False)


def _line(out: "Console", text: str) -> None:
    out.print(text, markup=False, soft_wrap=True)


def _console(json_file: str | None) -> "Console":
    """Tables go to standard output, or beside it when that is taken by JSON."""
    from rich.console import Console

    return Console(stderr=json_file == "-", highlight=False)
