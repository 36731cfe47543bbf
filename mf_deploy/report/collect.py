"""From folders to what a report says: every artifact with its results, and what is missing."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mf_deploy.artifact import SCHEMES, TARGETS, Artifact, artifact_folders, find_artifacts
from mf_deploy.benchmarks.instructions import InstructionReport
from mf_deploy.benchmarks.latency import Kind, LatencyReport
from mf_deploy.errors import MfDeployError
from mf_deploy.report.results import load_results

KINDS: tuple[Kind, ...] = ("device", "browser", "host", "emulated", "estimated")

if TYPE_CHECKING:
    from mf_deploy.evaluation.accuracy import AccuracyReport


@dataclass(frozen=True, order=True)
class Setting:
    """What latencies must share to be compared: the device, the worth of its times, and how it was asked."""

    kind: str
    device: str
    label: str
    accelerator: str = "cpu"
    threads: int = 1
    cores: str = ""

    @classmethod
    def of(cls, report: LatencyReport) -> "Setting":
        asked = report.measurement.accelerator_requested if report.measurement else "cpu"
        device = report.device
        return cls(report.kind, device.name, device.label, asked, report.threads, report.cores or "")

    def __str__(self) -> str:
        plural = "s" if self.threads > 1 else ""
        accelerator = f", {self.accelerator}" if self.accelerator != "cpu" else ""
        cores = f" on cores {self.cores}" if self.cores else ""
        app = " in the app" if self.device.endswith("--app") else ""
        return f"{self.label}{app}{accelerator}, {self.threads} thread{plural}{cores} ({self.kind})"


@dataclass(eq=False)
class Entry:
    """One artifact and the results that belong to its present file.

    Of several latencies in one setting, ``latency`` has the newest that ran to its end; ``repeats`` counts
    them all.
    """

    artifact: Artifact
    accuracy: "AccuracyReport | None" = None
    latency: dict[Setting, LatencyReport] = field(default_factory=dict)
    repeats: Counter[Setting] = field(default_factory=Counter)
    instructions: dict[str, InstructionReport] = field(default_factory=dict)
    not_run: list[str] = field(default_factory=list)

    @property
    def model(self) -> str:
        return self.artifact.manifest.model.name

    def wrong_on(self, setting: Setting) -> bool:
        """Whether the device's logits were wrong there: then it is no use that it is fast."""
        report = self.latency.get(setting)
        verdict = report.measurement.correctness if report and report.measurement else None
        return verdict is not None and not verdict.passed

    def add_latency(self, report: LatencyReport) -> None:
        """Take a latency, or the reason why there is none."""
        setting = Setting.of(report)
        if report.measurement is None:
            self.not_run.append(f"latency on {setting}: {report.not_run}")
            return
        self.repeats[setting] += 1
        before = self.latency.get(setting)
        if before is None or _worth(report) > _worth(before):
            self.latency[setting] = report


@dataclass
class Collection:
    """Everything that a report shows. ``problems`` are files that could not be used, and why."""

    folder: Path
    entries: list[Entry]
    problems: list[str]

    @property
    def several_models(self) -> bool:
        return len({entry.artifact.folder.parent for entry in self.entries}) > 1

    def label(self, entry: Entry) -> str:
        """The artifact's name, with its run's where there are several."""
        artifact = entry.artifact
        return f"{artifact.folder.parent.name}/{artifact.name}" if self.several_models else artifact.name

    @property
    def settings(self) -> list[Setting]:
        """What was timed where: settings with many artifacts first, phones before browsers and computers."""
        count = Counter(setting for entry in self.entries for setting in entry.latency)
        return sorted(count, key=lambda s: (-count[s], KINDS.index(s.kind), s.threads, s))

    @property
    def references(self) -> list[Entry]:
        """For each model and data set, one entry whose accuracy report tells the reference's accuracy."""
        found: dict[tuple[Path, str, int], Entry] = {}
        for entry in self.entries:
            if entry.accuracy and entry.accuracy.reference_top1:
                key = (entry.artifact.folder.parent, entry.accuracy.data, entry.accuracy.images)
                found.setdefault(key, entry)
        return list(found.values())


def collect(folder: Path) -> Collection:
    """Read the artifacts and results of an artifact folder, a model folder, or a folder of model folders.

    What cannot be read is named among the problems and left out.

    Raises:
        MfDeployError: no artifact there at all.
    """
    folder = folder.resolve()
    entries: list[Entry] = []
    problems: list[str] = []
    for path in artifact_folders(folder):
        try:
            entries.append(Entry(Artifact.open(path)))
        except MfDeployError as error:
            problems.append(str(error))
    if not entries and not problems:
        find_artifacts(folder)  # says what is wrong
    for run in dict.fromkeys(entry.artifact.folder.parent for entry in entries):
        of_run = [entry for entry in entries if entry.artifact.folder.parent == run]
        problems += _add_results(run, of_run, everything=run.is_relative_to(folder))
    entries.sort(key=_order)
    for entry in entries:
        entry.not_run += _missing(entry)
    return Collection(folder, entries, [problem.replace(f"{folder}{os.sep}", "") for problem in problems])


def _worth(report: LatencyReport) -> tuple[bool, str]:
    """A run that ended early is worth less than one that did not, an old one less than a new one."""
    return (report.measurement is not None and report.measurement.partial is None, report.created)


def _order(entry: Entry) -> tuple[str, int, int, str]:
    """By run, then target, then scheme from the finest to the coarsest."""
    artifact = entry.artifact
    target, scheme = artifact.manifest.target, artifact.manifest.scheme
    return (artifact.folder.parent.name, TARGETS.index(target), SCHEMES.index(scheme), artifact.name)


def _add_results(run: Path, entries: list[Entry], everything: bool) -> list[str]:
    """Give each result of a run to its artifact; returns those that fit none.

    ``everything``: the report is on the whole run, so that results of artifacts it does not show are odd.
    """
    results = load_results(run)
    by_name = {entry.artifact.name: entry for entry in entries}
    problems = list(results.problems)
    for accuracy in sorted(results.accuracy, key=lambda report: report.device == "host"):
        if entry := _owner(run, accuracy, by_name, "mf-check", everything, problems):
            entry.accuracy = accuracy  # that of the host, if there is one
    for latency in results.latency:
        if entry := _owner(run, latency, by_name, "mf-bench", everything, problems):
            entry.add_latency(latency)
    for count in results.instructions:
        if entry := _owner(run, count, by_name, "mf-bench", everything, problems):
            entry.instructions[count.device] = count
    return problems


def _owner(
    run: Path,
    report: "AccuracyReport | LatencyReport | InstructionReport",
    by_name: dict[str, Entry],
    command: str,
    everything: bool,
    problems: list[str],
) -> Entry | None:
    """The artifact that a result is about, if it is still the same file; else adds a problem."""
    entry = by_name.get(report.artifact)
    if entry is None:
        if everything:
            problems.append(f"{run}: a {command} result is about {report.artifact}, which is not there")
        return None
    if report.model_sha256 != entry.artifact.sha256:
        problems.append(f"{run}: {report.artifact} has changed since it was measured. Run {command} again.")
        return None
    return entry


def _missing(entry: Entry) -> list[str]:
    """What no command was run for."""
    missing = []
    if entry.accuracy is None:
        random = entry.artifact.manifest.model.random_weights
        why = "the weights are random" if random else "run mf-check"
        missing.append(f"accuracy: {why}")
    if not entry.latency and not entry.not_run:
        missing.append("latency: run mf-bench")
    return missing
