"""mf-bench serve as a process: what it refuses, what it says, and how it ends."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from serving import engines_or_skip, valid_post
from tiny_artifacts import write_tiny_artifact

from mf_deploy.artifact import Artifact
from mf_deploy.benchmarks.server.offers import offers_of

SERVE = [sys.executable, "-m", "mf_deploy.cli.bench", "serve"]


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return write_tiny_artifact(tmp_path / "tiny" / "onnx-fp32")


def refused(*arguments: str | Path, **environment: str) -> tuple[int, str]:
    """Exit code and the one line of a command that refuses to start."""
    done = subprocess.run(
        [*SERVE, *map(str, arguments)], capture_output=True, text=True, env=os.environ | environment
    )
    assert done.stderr.count("\n") == 1, done.stderr
    assert not done.stdout
    return done.returncode, done.stderr


def test_results_arrive_on_the_terminal_and_ctrl_c_ends_it_cleanly(artifact: Artifact) -> None:
    engines_or_skip()
    process = subprocess.Popen(
        [*SERVE, str(artifact.folder.parent), "--http", "--port", "0", "--quick"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        lines = []
        while "Waiting for results" not in (line := process.stdout.readline()):
            assert line, process.communicate()
            lines.append(line)
        found = re.search(r"http://localhost:(\d+)/#([\w-]{22})$", lines[0].strip())
        assert found is not None
        port, token = int(found[1]), found[2]
        with socket.socket() as elsewhere, pytest.raises(ConnectionRefusedError):
            elsewhere.connect(("127.0.0.2", port))
        (offer,) = offers_of([artifact])
        connection = http.client.HTTPConnection("localhost", port, timeout=60)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        connection.request("GET", "/api/session", headers=headers)
        protocols = json.loads(connection.getresponse().read())["protocols"]
        assert list(protocols) == ["quick", "full", "sustained"]
        assert (protocols["full"]["min_runs"], protocols["full"]["min_seconds"]) == (1024, 60)
        connection.request("POST", "/api/results", json.dumps(valid_post(offer)), headers)
        assert connection.getresponse().status == 201
        line = process.stdout.readline()
        assert "Pixel 8, Google Chrome 141: tiny/onnx-fp32: p50 11.5 ms, p90 14.1 ms" in line
        assert "right to 0.0e+00" in line
    finally:
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert errors == "Stopping ...\n"
    assert re.search(r"tiny/onnx-fp32 +Pixel 8, Google Chrome 141 +ONNX Runtime Web, wasm +2 +120", rest)


def test_without_engines_the_command_that_fetches_them_is_named(artifact: Artifact, tmp_path: Path) -> None:
    code, line = refused(artifact.folder, MF_DEPLOY_CACHE=str(tmp_path / "empty"))
    assert code == 3
    assert "Run: mf-deploy setup web" in line


def test_a_taken_port_is_one_line(artifact: Artifact) -> None:
    engines_or_skip()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, line = refused(artifact.folder, "--host", "127.0.0.1", "--port", str(taken.getsockname()[1]))
    assert code == 2
    assert "Pass another --port" in line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--http", "--host", "192.168.1.5"], "Cannot serve 192.168.1.5 with --http"),
        (["--port", "70000"], "70000 is not in the range"),
        (["--token", "x"], "No such option"),
    ],
)
def test_bad_options_are_refused(artifact: Artifact, options: list[str], said: str) -> None:
    code, line = refused(artifact.folder, *options)
    assert code == 2
    assert said in line


def test_what_no_browser_runs_is_not_served(tmp_path: Path) -> None:
    engines_or_skip()
    write_tiny_artifact(tmp_path / "tiny" / "coreml-fp32", target="coreml")
    code, line = refused(tmp_path / "tiny")
    assert code == 2
    assert "Nothing to serve" in line
