"""Where results are kept: in the folder ``results`` of the model folder that holds the artifacts.

``check-<artifact>.json`` is an accuracy, ``bench-<artifact>-<device>-t<threads>.json`` a latency,
``instructions-<artifact>-<device>.json`` an instruction count.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from mf_deploy.artifact import MAX_JSON_BYTES, Record, RecordT, read_record, write_whole
from mf_deploy.benchmarks.instructions import InstructionReport
from mf_deploy.benchmarks.latency import LatencyReport
from mf_deploy.errors import MfDeployError

if TYPE_CHECKING:
    from mf_deploy.evaluation.accuracy import AccuracyReport

RESULTS_FOLDER = "results"
CHECK, BENCH, INSTRUCTIONS = "check-", "bench-", "instructions-"


@dataclass
class Results:
    """The results of one run; ``problems`` names the files that could not be read, and why."""

    accuracy: "list[AccuracyReport]" = field(default_factory=list)
    latency: list[LatencyReport] = field(default_factory=list)
    instructions: list[InstructionReport] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def result_path(run_folder: Path, name: str) -> Path:
    """The file of the result called ``name``; characters that a file name should not have become ``-``."""
    return run_folder / RESULTS_FOLDER / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}.json"


def save_result(run_folder: Path, name: str, record: Record) -> Path:
    """Write a result beside the artifacts it is about, whole or not at all, and return its path.

    Args:
        run_folder: the model folder, e.g. ``artifact.folder.parent``.
        name: e.g. ``check-onnx-w8a8``; a result of the same name is replaced.
    """
    path = result_path(run_folder, name)
    write_whole(path, record.model_dump_json().encode())
    return path


def load_results(run_folder: Path) -> Results:
    """Every result in ``run_folder``; a file that cannot be read is a problem, not an error."""
    from mf_deploy.evaluation.accuracy import AccuracyReport

    results = Results()
    fix = "Measure again with mf-check or mf-bench."
    for path in sorted((run_folder / RESULTS_FOLDER).glob("*.json")):
        try:
            if path.name.startswith(CHECK):
                results.accuracy.append(_read(path, AccuracyReport, fix))
            elif path.name.startswith(BENCH):
                results.latency.append(_read(path, LatencyReport, fix))
            elif path.name.startswith(INSTRUCTIONS):
                results.instructions.append(_read(path, InstructionReport, fix))
            elif not path.name.startswith("."):
                results.problems.append(f"{path}: none of {CHECK}*.json, {BENCH}*.json, {INSTRUCTIONS}*.json")
        except MfDeployError as error:
            results.problems.append(str(error))
    return results


def _read(path: Path, kind: type[RecordT], fix: str) -> RecordT:
    """As ``read_record``; a file of another version of mf-deploy is named as such."""
    try:
        return read_record(path, kind, fix)
    except MfDeployError:
        if (version := _schema_version(path)) is None:
            raise
        known = get_args(kind.model_fields["schema_version"].annotation)
        if version in known:
            raise
        newer = version > max(known)
        raise MfDeployError(
            f"Cannot read {path}",
            f"schema version {version} of {'a newer' if newer else 'an older'} mf-deploy, not {known[-1]}",
            "Update mf-deploy." if newer else fix,
        ) from None


def _schema_version(path: Path) -> int | None:
    try:
        content = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_JSON_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None
    version = content.get("schema_version") if isinstance(content, dict) else None
    return version if isinstance(version, int) else None
