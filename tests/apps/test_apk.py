"""The APK: built from pinned packages, for one ABI, without permissions, signed, small."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ANDROID = Path(__file__).parents[2] / "apps/android"
MAX_BYTES = 20_000_000

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def apk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The app, built; skips where a tool or a registry is missing."""
    folder = tmp_path_factory.mktemp("apk")
    done = subprocess.run(
        ["bash", str(ANDROID / "build.sh"), str(folder)],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 3:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    assert "It was not run on a device" in done.stdout
    return folder / "mf-bench.apk"


def output(*command: object) -> str:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout


def test_android_reads_its_manifest(apk: Path) -> None:
    badging = output("aapt", "dump", "badging", apk)
    assert "package: name='org.mfdeploy.bench'" in badging
    assert "versionName='0.1.0'" in badging
    assert "sdkVersion:'26'" in badging
    assert "targetSdkVersion:'34'" in badging
    assert "launchable-activity: name='org.mfdeploy.bench.MainActivity'" in badging
    assert re.findall(r"^native-code: (.*)$", badging, re.MULTILINE) == ["'arm64-v8a'"]
    assert "uses-permission" not in badging  # above all, no network
    tree = output("aapt", "dump", "xmltree", apk, "AndroidManifest.xml")
    assert "org.mfdeploy.bench.results" in tree
    assert ":run" in tree


def test_the_signature_is_one_that_android_takes(apk: Path) -> None:
    verdict = output("apksigner", "verify", "--verbose", "--min-sdk-version", "26", apk)
    assert "Verified using v2 scheme (APK Signature Scheme v2): true" in verdict
    assert "Number of signers: 1" in verdict
    output("zipalign", "-c", "4", apk)


def test_a_changed_apk_is_no_longer_signed(apk: Path, tmp_path: Path) -> None:
    changed = shutil.copy(apk, tmp_path / "changed.apk")
    with zipfile.ZipFile(changed, "a") as archive:
        archive.writestr("assets/extra", "x")
    command = ["apksigner", "verify", "--min-sdk-version", "26", str(changed)]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_it_is_small_and_holds_the_engine_and_its_licence(apk: Path) -> None:
    assert apk.stat().st_size < MAX_BYTES
    with zipfile.ZipFile(apk) as archive:
        assert archive.testzip() is None
        entries = {entry.filename: entry for entry in archive.infolist()}
        dex = archive.read("classes.dex")
    assert {name for name in entries if name.startswith("lib/")} == {
        "lib/arm64-v8a/libonnxruntime.so",
        "lib/arm64-v8a/libonnxruntime4j_jni.so",
    }
    assert "assets/onnxruntime-LICENSE.txt" in entries
    # Android 11 and later refuse an app whose resource table is compressed.
    assert entries["resources.arsc"].compress_type == zipfile.ZIP_STORED
    for name in (b"Lorg/mfdeploy/bench/RunActivity;", b"Lorg/mfdeploy/bench/core/Benchmark;",
                 b"Lai/onnxruntime/OrtSession;"):  # fmt: skip
        assert name in dex


def test_the_version_of_onnxruntime_is_the_one_that_gradle_would_take(apk: Path) -> None:
    gradle = (ANDROID / "app/build.gradle").read_text()
    found = re.search(r"com\.microsoft\.onnxruntime:onnxruntime-android:([\d.]+)'", gradle)
    assert found
    with zipfile.ZipFile(apk) as archive:
        library = archive.read("lib/arm64-v8a/libonnxruntime.so")
    assert found[1].encode() in library
