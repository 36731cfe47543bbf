"""The page, the Markdown and the CSV: complete, self-contained, and safe with names from outside."""

import csv
import io
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sample_results import IMAGES, accuracy_of, keep, latency_of, not_run
from tiny_artifacts import write_tiny_artifact

from mf_deploy.artifact import Calibration, ModelSource, Quantization
from mf_deploy.evaluation.gates import Gates
from mf_deploy.evaluation.statistics import paired_drop
from mf_deploy.report import collect, render

VOID = {"meta", "br", "hr", "img", "link", "input"}
HOSTILE = (
    "<script>alert('x')</script>\"'><img src=//evil.example/x onerror=alert(1)>{{ 7*7 }} &amp; | `a` *b*"
)


class Page(HTMLParser):
    """Collects tags and attributes, and checks that every tag is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run with everything: three targets, gates, two thread counts, something not run, a bad file."""
    folder = tmp_path / "tiny"
    quantization = Quantization(macs={"int8": 800, "fp32": 200}, parameters={"int8": 90, "fp32": 10})
    calibration = Calibration(
        source="/home/someone/calib.tar", samples=64, digest="ab" * 32, image_digests=[]
    )
    fp32 = write_tiny_artifact(folder / "onnx-fp32", depth=3)
    w8a8 = write_tiny_artifact(
        folder / "onnx-w8a8", scheme="w8a8", quantization=quantization, calibration=calibration
    )
    coreml = write_tiny_artifact(folder / "coreml-fp32", target="coreml")
    write_tiny_artifact(folder / "tflite-fp32", target="tflite")
    keep(fp32, accuracy_of(fp32, 0, 0), latency_of(fp32, 6.0), latency_of(fp32, 4.0, threads=2))
    keep(w8a8, accuracy_of(w8a8, 60, 10, Gates(max_drop_points=1.0)), latency_of(w8a8, 2.5))
    keep(coreml, accuracy_of(coreml, 0, 0), not_run(coreml, "Core ML needs macOS"))
    (folder / "results" / "bench-bad.json").write_text("[]")
    return folder


def test_the_page_holds_every_figure_and_is_well_formed(run_folder: Path) -> None:
    page = Page(render(collect(run_folder), ".html"))
    drop = paired_drop(60, 10, IMAGES)
    for text in (
        "onnx-fp32", "onnx-w8a8", "coreml-fp32", "tflite-fp32",
        "86.80", "81.80", "5.00", f"{drop.low_points:.2f} to {drop.high_points:.2f}", "31.4",
        "Core ML needs macOS", "run mf-check", "run mf-bench", "bench-bad.json",
        "fail", "max drop", "int8 80.0 %", "64 images of calib.tar", "test engine 1.0",
        "Drop of top-1 against latency: Test CPU, 1 thread (host)",
        "Drop of top-1 against latency: Test CPU, 2 threads (host)",
        "Drop of top-1 against size", "emulated", "Pareto front",
    ):  # fmt: skip
        assert text in page.text, text
    assert "/home/someone" not in page.text
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        assert attributes.get("aria-labelledby", ids[0]) in ids
        if (attributes.get("href") or "").startswith("#"):
            assert str(attributes["href"])[1:] in ids


def test_the_page_needs_nothing_else(run_folder: Path) -> None:
    html = render(collect(run_folder), ".html")
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "img", "base", "form"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in html
    assert "@import" not in html
    assert "http" not in re.sub(r"http-equiv", "", html)
    assert "default-src 'none'" in html


def test_the_drawings_are_valid_svg(run_folder: Path) -> None:
    html = render(collect(run_folder), ".html")
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(drawings) > 10
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        for element in root.iter():
            for name in ("x", "y", "width", "height", "cx", "cy"):
                if name in element.attrib:
                    float(element.attrib[name])


def test_names_from_outside_are_text_and_nothing_else(tmp_path: Path) -> None:
    source = ModelSource(name=HOSTILE, num_classes=10, checkpoint_name=HOSTILE)
    artifact = write_tiny_artifact(
        tmp_path / "run" / "<b>onnx", model=source, rewrites=[HOSTILE], tools={HOSTILE: HOSTILE}
    )
    keep(artifact, accuracy_of(artifact), latency_of(artifact, cpu=HOSTILE))
    (tmp_path / "run" / "results" / "check-<i>.json").write_text('{"<u>": 1}')
    found = collect(tmp_path / "run")
    page = Page(render(found, ".html"))
    assert not {"script", "img", "b onnx", "i", "u"} & {tag for tag, _ in page.tags}
    assert HOSTILE in page.text
    assert page.text.count("{{ 7*7 }}") == page.text.count("7*7") > 0
    markdown = render(found, ".md")
    assert "<script" not in markdown.replace("\\<script", "")
    for line in markdown.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (10, 4)


def test_a_run_without_any_result_still_makes_a_page(tmp_path: Path) -> None:
    write_tiny_artifact(tmp_path / "tiny" / "onnx-fp32")
    page = Page(render(collect(tmp_path / "tiny"), ".html"))
    assert "accuracy: run mf-check" in page.text
    assert "What accuracy costs" not in page.text


def test_markdown_is_one_table_with_the_same_figures(run_folder: Path) -> None:
    lines = render(collect(run_folder), ".md").splitlines()
    (line,) = [line for line in lines if line.startswith("| onnx-w8a8") and "81.80" in line]
    assert "5.00 (3.4" in line
    assert any("Core ML needs macOS" in line for line in lines)
    assert any("bench-bad.json" in line for line in lines)


def test_csv_holds_the_numbers_in_full(run_folder: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(render(collect(run_folder), ".csv"))))
    assert [(row["artifact"], row["threads"]) for row in rows] == [
        ("onnx-fp32", "1"),
        ("onnx-fp32", "2"),
        ("onnx-w8a8", "1"),
        ("coreml-fp32", ""),
        ("tflite-fp32", ""),
    ]
    assert float(rows[2]["top1_percent"]) == pytest.approx(81.8)
    assert float(rows[2]["p50_ms"]) == pytest.approx(2.5, rel=0.05)
    assert "Core ML needs macOS" in rows[3]["not_run"]


def test_csv_text_cannot_become_a_formula(tmp_path: Path) -> None:
    source = ModelSource(name="=HYPERLINK(1)", num_classes=10)
    artifact = write_tiny_artifact(tmp_path / "run" / "onnx-fp32", model=source)
    keep(artifact, accuracy_of(artifact, lost=0, gained=5))
    (row,) = csv.DictReader(io.StringIO(render(collect(tmp_path / "run"), ".csv")))
    assert row["model"] == "'=HYPERLINK(1)"
    assert float(row["drop_points"]) == pytest.approx(-0.5)


def mf_report(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mf_deploy.cli.report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_writes_the_page_beside_the_artifacts(run_folder: Path) -> None:
    done = mf_report(run_folder)
    assert done.returncode == 0, done.stderr
    assert "4 artifacts, 3 of them measured" in done.stdout
    table = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    assert float(table["PyTorch"][1]) > 50
    assert table["onnx-fp32"][-1] == "(host)"
    assert "left out: Cannot read results/bench-bad.json" in done.stderr
    assert (run_folder / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "report.pdf"], "its ending is not .html, .md, .csv"),
        (["--out", "/dev/null/report.html"], "Cannot write"),
        (["--nonsense"], "No such option"),
    ],
)
def test_bad_options_are_refused_in_one_line(run_folder: Path, arguments: list[str], message: str) -> None:
    done = mf_report(run_folder, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_folder_without_artifacts_is_refused(tmp_path: Path) -> None:
    done = mf_report(tmp_path)
    assert done.returncode == 2
    assert "No artifact at" in done.stderr
