"""Fixtures that every room's tests share."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from mf_deploy.runtimes.arm.lab import Lab

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
APART = ("tests/test_matrix.py",)


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """A file's tests share what they make, so one worker runs them; those of ``APART`` share nothing."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, _ = nodeid.partition("::")
        return nodeid if file in APART else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFile:
    return ByFile(config, log)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real images and checkpoints beside the checkout; skips where there is none."""
    if not (SHARED / "reference").is_dir():
        pytest.skip("needs the folder ../shared with images and checkpoints")
    return SHARED


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this test run see."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the printed lines of the demo, run where an export of another model lies already.

    It takes minutes: the processes of one test run share it, and leave it as it is.
    """
    folder = shared_folder(tmp_path_factory)
    out, printed = folder / "demo", folder / "demo.printed"
    with FileLock(folder / "demo.lock"):
        if not printed.exists():
            printed.write_text(_run_demo(out), encoding="utf-8")
    return out, printed.read_text(encoding="utf-8")


def _run_demo(out: Path) -> str:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    earlier = ["mf-export", "mobile_former_26m", "--target", "onnx", "--random-weights", "--out", str(out)]
    subprocess.run(earlier, env=environment, check=True, capture_output=True)
    command = ["bash", str(ROOT / "examples/demo.sh"), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=out)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def lab(lab_or_none: "Lab | None") -> "Lab":
    """The lab in this machine's cache; skips where it cannot be set up."""
    if lab_or_none is None:
        pytest.skip("needs qemu-aarch64 and gcc on Debian or Ubuntu: make system-packages")
    return lab_or_none


@pytest.fixture(scope="session")
def lab_or_none() -> "Lab | None":
    """The lab in this machine's cache, set up now if it is not there; None where the tools are missing."""
    from mf_deploy.runtimes.arm.lab import QEMU

    if not all(map(shutil.which, (QEMU, "gcc", "apt-get"))):
        return None
    from mf_deploy.runtimes.arm.setup import set_up

    return set_up()


@pytest.fixture(autouse=True)
def emulators_end_with_their_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """End the emulated processes that a test leaves behind, as a failed one does."""
    yield
    if {"lab_or_none", "x86"} & set(request.fixturenames):
        import psutil

        for process in psutil.Process().children(recursive=True):
            if process.name().startswith("qemu-"):
                process.kill()
                process.wait()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a small network: both engines, in float and in int8; shared like the demo."""
    folder = shared_folder(tmp_path_factory) / "tiny"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            making = folder.with_suffix(".making")
            _export_tiny(making, folder.with_suffix(".pictures"))
            making.rename(folder)
    return folder


def _export_tiny(folder: Path, pictures: Path) -> None:
    from PIL import Image
    from tiny_tflite import SIDE, tiny_graph

    from mf_deploy.data import open_images
    from mf_deploy.export import Probe, export, quantize
    from mf_deploy.export.parity import seeded_pictures
    from mf_deploy.quantization import QuantPolicy

    graph = tiny_graph()
    probe = Probe.seeded(graph.module, SIDE)
    pictures.mkdir(exist_ok=True)
    for index, picture in enumerate(seeded_pictures(8, SIDE)):
        Image.fromarray(picture).save(pictures / f"{index}.png")
    folder.mkdir()
    for target in ("onnx", "tflite"):
        export(graph, target, "fp32", folder / f"{target}-fp32", probe)
        quantize(graph, target, open_images(pictures), QuantPolicy("w8a8"), folder / f"{target}-w8a8", probe)
