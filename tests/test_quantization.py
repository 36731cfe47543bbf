"""Plans: the longest path wins, unknown modules are refused, JSON comes back as it was."""

import pytest

from mf_deploy.errors import MfDeployError
from mf_deploy.quantization import QuantPlan, QuantPolicy, unit_of

PATHS = ["stem.0", "features.3.conv1.0", "features.3.global_block.ffn.0", "features.30.conv1.0"]


def test_longest_path_wins() -> None:
    plan = QuantPlan(model="m", modules={"": "int8", "features.3": "w8", "features.3.conv1": "fp32"})
    assert [plan.precision(path) for path in PATHS] == ["int8", "fp32", "w8", "int8"]


def test_a_module_that_no_path_leads_to_stays_fp32() -> None:
    assert QuantPlan(model="m", modules={"features.3": "int8"}).precision("stem.0") == "fp32"


def test_unknown_module_is_refused_with_a_suggestion() -> None:
    plan = QuantPlan(model="m", modules={"": "int8", "features.3.conv7": "fp32"})
    with pytest.raises(MfDeployError, match=r"features\.3\.conv7"):
        plan.check(PATHS)


def test_a_leading_name_is_not_a_prefix_of_letters() -> None:
    with pytest.raises(MfDeployError):
        QuantPlan(model="m", modules={"features.3.conv": "fp32"}).check(PATHS)


def test_json_round_trip() -> None:
    plan = QuantPlan.uniform("m", "int8").with_precision(["features.3"], "w8")
    assert QuantPlan.model_validate_json(plan.model_dump_json()) == plan


def test_units() -> None:
    assert list(map(unit_of, PATHS)) == [
        "stem.0",
        "features.3.conv1",
        "features.3.global_block",
        "features.30.conv1",
    ]


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(MfDeployError, match="w9"):
        QuantPolicy("w9")  # type: ignore[arg-type]
