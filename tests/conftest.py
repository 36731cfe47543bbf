"""Fixtures that every room's tests share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real images and checkpoints beside the checkout; skips where there is none."""
    if not (SHARED / "reference").is_dir():
        pytest.skip("needs the folder ../shared with images and checkpoints")
    return SHARED


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the printed lines of the demo, run where an export of another model lies already.

    It takes minutes: the processes of one test run share it, and leave it as it is.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
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
