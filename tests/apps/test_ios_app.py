"""The iPhone app, as far as Linux can tell: Swift's syntax, and a project in which everything is there."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from mf_deploy.benchmarks.latency import (
    Conditions,
    Correctness,
    DeviceInfo,
    LatencyReport,
    LatencyStatistics,
    Measurement,
    Placement,
    TimedConditions,
)
from mf_deploy.benchmarks.protocol import Protocol

IOS = Path(__file__).parents[2] / "apps/ios"
PROJECT = IOS / "MFBench.xcodeproj"
SOURCES = sorted(IOS.glob("MFBench*/*.swift"))


def problems(source: bytes) -> list[str]:
    """Where the Swift parser is at a loss."""
    tree_sitter = pytest.importorskip("tree_sitter")
    language = tree_sitter.Language(pytest.importorskip("tree_sitter_swift").language())
    found, waiting = [], [tree_sitter.Parser(language).parse(source).root_node]
    while waiting:
        node = waiting.pop()
        if node.is_error or node.is_missing:
            found.append(f"line {node.start_point[0] + 1}: {source[node.start_byte : node.end_byte][:80]!r}")
        waiting += node.children if node.has_error else []
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_syntax_is_swift(path: Path) -> None:
    assert problems(path.read_bytes()) == []


def test_a_slip_would_be_found() -> None:
    good = (IOS / "MFBench/Statistics.swift").read_bytes()
    assert problems(good.replace(b"{", b"", 1))
    assert problems(good.replace(b"func ", b"fun ", 1))


def objects() -> dict[str, dict[str, Any]]:
    openstep_plist = pytest.importorskip("openstep_plist")
    project = openstep_plist.loads((PROJECT / "project.pbxproj").read_text())
    found: dict[str, dict[str, Any]] = project["objects"]
    assert found[project["rootObject"]]["isa"] == "PBXProject"
    return found


def test_every_reference_in_the_project_leads_somewhere() -> None:
    known = objects()
    text = (PROJECT / "project.pbxproj").read_text()
    assert set(re.findall(r"\b4D46[0-9A-F]{20}\b", text)) == set(known)
    for of in known.values():
        for key in ("fileRef", "productReference", "mainGroup", "buildConfigurationList", "target"):
            assert of.get(key, "") in {"", *known}


def test_every_file_of_the_project_is_there_and_every_source_is_compiled_once() -> None:
    known = objects()
    paths: dict[str, Path] = {}

    def walk(identifier: str, folder: Path) -> None:
        of = known[identifier]
        here = folder / of["path"] if "path" in of else folder
        if of["isa"] == "PBXGroup":
            for child in of["children"]:
                walk(child, here)
        elif of["sourceTree"] == "<group>":
            paths[identifier] = here

    (project,) = (of for of in known.values() if of["isa"] == "PBXProject")
    walk(project["mainGroup"], IOS)
    assert all(path.exists() for path in paths.values()), paths
    compiled: dict[str, list[Path]] = {}
    for target in (known[identifier] for identifier in project["targets"]):
        (sources,) = (known[p] for p in target["buildPhases"] if known[p]["isa"] == "PBXSourcesBuildPhase")
        compiled[target["name"]] = sorted(paths[known[file]["fileRef"]] for file in sources["files"])
    assert compiled == {name: sorted((IOS / name).glob("*.swift")) for name in ("MFBench", "MFBenchTests")}


def test_the_scheme_names_the_targets() -> None:
    known = objects()
    scheme = ElementTree.parse(PROJECT / "xcshareddata/xcschemes/MFBench.xcscheme")
    for reference in scheme.iter("BuildableReference"):
        target = known[reference.attrib["BlueprintIdentifier"]]
        assert target["name"] == reference.attrib["BlueprintName"]


def snake(name: str) -> str:
    """As JSONEncoder's convertToSnakeCase writes a property's name."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name.strip("`")).lower()


def properties(source: str, struct: str) -> set[str]:
    """The stored properties of a Swift struct, as they are written to JSON."""
    (body,) = re.findall(rf"^( *)struct {struct}: \w+.*?\{{\n(.*?)^\1\}}", source, re.MULTILINE | re.DOTALL)
    indent = len(body[0]) + 4
    lines = re.findall(rf"^ {{{indent}}}(?:@Null )?(?:let|var) ([^:={{]+)[:=]", body[1], re.MULTILINE)
    return {snake(name.strip()) for line in lines for name in line.split(",")} - {"json"}


@pytest.mark.parametrize(
    ("file", "struct", "record"),
    [
        ("Report.swift", "Report", LatencyReport),
        ("Report.swift", "Measurement", Measurement),
        ("Report.swift", "Device", DeviceInfo),
        ("Report.swift", "Conditions", Conditions),
        ("Report.swift", "TimedConditions", TimedConditions),
        ("Report.swift", "Placement", Placement),
        ("Report.swift", "Correctness", Correctness),
        ("Statistics.swift", "Statistics", LatencyStatistics),
        ("BenchProtocol.swift", "BenchProtocol", Protocol),
    ],
)
def test_what_the_app_writes_are_the_fields_of_the_schema(file: str, struct: str, record: Any) -> None:
    written = properties((IOS / "MFBench" / file).read_text(), struct)
    required = {name for name, field in record.model_fields.items() if field.is_required()}
    assert required <= written <= set(record.model_fields)


def test_its_words_are_those_of_the_schema() -> None:
    text = "".join(path.read_text() for path in SOURCES)
    states = json.dumps(Conditions.model_json_schema())
    for state in ("nominal", "fair", "serious", "critical", "unknown"):
        assert f'return "{state}"' in text
        assert f'"{state}"' in states
    assert "let schemaVersion = 2" in text
    assert LatencyReport.model_fields["schema_version"].default == 2
