"""Users' factories, good and bad."""

import sys
from pathlib import Path

import pytest
import torch

from mf_deploy.errors import MfDeployError
from mf_deploy.models import load_model
from mf_deploy.models.user import call_factory, count_classes

SOURCE = """
import torch
from torch import nn

number = 3

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 7))

    @classmethod
    def small(cls):
        return cls()

def lazy():
    import user_models_part
    return user_models_part.part()

def broken():
    raise ValueError("no weights\\nhere")

def leaves():
    raise SystemExit(4)

def wrong():
    return {"state_dict": {}}

def features():
    return nn.Conv2d(3, 4, 1)

def fixed():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))

def needs(argument):
    return argument
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "user_models.py").write_text(SOURCE)
    (tmp_path / "user_models_part.py").write_text("from user_models import Net as part\n")
    (tmp_path / "user_models_bad.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.startswith("user_models")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


@pytest.mark.usefixtures("package")
def test_factories_of_the_current_directory() -> None:
    path = list(sys.path)
    for factory in ("user_models:Net", "user_models:Net.small", "user_models:lazy"):
        assert call_factory(factory)(torch.zeros(2, 3, 8, 8)).shape == (2, 7)
    assert sys.path == path


@pytest.mark.usefixtures("package")
def test_random_weights_repeat_and_leave_the_callers_generator_alone() -> None:
    state = torch.random.get_rng_state()
    first, second = (call_factory("user_models:Net").state_dict() for _ in range(2))
    assert torch.equal(first["2.weight"], second["2.weight"])
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.usefixtures("package")
def test_classes_are_counted_on_the_output() -> None:
    assert count_classes(call_factory("user_models:Net"), "user_models:Net", 32) == 7


@pytest.mark.usefixtures("package")
def test_loads_a_checkpoint(tmp_path: Path) -> None:
    weights = {"2.weight": torch.full((7, 3), 0.5), "2.bias": torch.arange(7.0)}
    torch.save({"state_dict": weights}, tmp_path / "w.pth")
    model = load_model("user_models:Net", tmp_path / "w.pth")
    assert torch.equal(model(torch.zeros(1, 3, 8, 8)), torch.arange(7.0)[None])
    with pytest.raises(MfDeployError, match="its factory decides"):
        load_model("user_models:Net", num_classes=3)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("user_models:", "not of the form"),
        (":Net", "not of the form"),
        ("user_models:Net()", "not of the form"),
        ("../user_models:Net", "not of the form"),
        ("no_such_module:Net", "Cannot import no_such_module: ModuleNotFoundError"),
        ("user_models_bad:Net", "Cannot import user_models_bad: .*a_module_that_is_not_there"),
        ("user_models:Net.large", "has no Net.large"),
        ("user_models:number", "number is not callable"),
        ("user_models:broken", "failed: ValueError: no weights. "),
        ("user_models:leaves", "failed: SystemExit: 4"),
        ("user_models:needs", "failed: TypeError"),
        ("user_models:wrong", "returned dict, not nn.Module"),
    ],
)
def test_bad_factories_get_one_line(factory: str, message: str) -> None:
    with pytest.raises(MfDeployError, match=message) as caught:
        call_factory(factory)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("user_models:features", r"no classifier: it gives torch.float32 \(1, 4, 64, 64\)"),
        ("user_models:fixed", "does not run: RuntimeError"),
    ],
)
def test_models_that_give_no_logits(factory: str, message: str) -> None:
    with pytest.raises(MfDeployError, match=message):
        count_classes(call_factory(factory), factory, 64)
