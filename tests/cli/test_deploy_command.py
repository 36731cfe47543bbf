"""``mf-deploy`` as a user runs it."""

import json
import subprocess
import sys

from mf_deploy.models.registry import list_models

MAIN = "from mf_deploy.cli.deploy import main; main()"


def mf_deploy(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", MAIN, *arguments], capture_output=True, text=True, timeout=120
    )


def test_models_json_has_every_model_with_its_counts() -> None:
    done = mf_deploy("models", "--json")
    assert done.returncode == 0, done.stderr
    listed = {model["name"]: model for model in json.loads(done.stdout)["models"]}
    assert list(listed) == [spec.name for spec in list_models()]
    assert listed["mobilenet_v3_small"]["params"] == 2_542_856
    assert listed["mobile_former_508m"]["published_top1"] == 79.3
    assert all(model["macs"] > 0 and model["source"] for model in listed.values())


def test_models_table_fits_a_terminal_of_80_columns() -> None:
    done = mf_deploy("models")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "…" not in done.stdout
    assert "mobile_former_151m_spatial" in done.stdout


def test_bad_words_get_one_line_with_the_nearest_right_one() -> None:
    done = mf_deploy("modles")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: Unknown command 'modles': mf-deploy has no such. Did you mean models?\n"
    done = mf_deploy("models", "--jsn")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_help_names_the_subcommands_and_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'pydantic', 'rich.table'} & set(sys.modules)"
    code = f"import atexit, sys; atexit.register(lambda: print('heavy', {heavy})); {MAIN}"
    for arguments in ([], ["--help"], ["models", "--help"], ["doctor", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0
        assert done.stdout.endswith("heavy set()\n")
    assert {"doctor", "models"} <= set(mf_deploy("--help").stdout.split())
