"""What phones print about themselves, as they print it."""

import pytest

from mf_deploy.benchmarks.devices.android import conditions, device_info, is_emulated, properties

PIXEL = """\
[ro.build.version.release]: [14]
[ro.build.version.sdk]: [34]
[ro.product.manufacturer]: [Google]
[ro.product.model]: [Pixel 8]
[ro.soc.manufacturer]: [Google]
[ro.soc.model]: [Tensor G3]
[ro.hardware]: [shiba]

MemTotal:        7742040 kB
0-8
"""
WARM = """\
2.51 2.10 1.80 3/4567 12345

Current Battery Service state:
  AC powered: false
  USB powered: true
  Wireless powered: false
  Max charging current: 500000
  level: 83
  scale: 100
  voltage: 4210
  temperature: 315
  technology: Li-ion
Thermal Status: 3
zone BIG 61500
zone battery 31500
zone cpu-broken -274000
zone cpu-absurd 999999
"""


def test_a_phone_says_what_it_is() -> None:
    info = device_info("R5CT", PIXEL)
    assert (info.name, info.model, info.soc) == ("adb:R5CT", "Google Pixel 8", "Google Tensor G3")
    assert (info.cores, info.memory_bytes, info.os) == (9, 7742040 * 1024, "Android 14 (API 34)")
    assert info.label == "Google Pixel 8, Google Tensor G3"
    assert not is_emulated(properties(PIXEL))


def test_an_old_phone_tells_less() -> None:
    info = device_info("x", "[ro.board.platform]: [msm8996]\n")
    assert (info.soc, info.model, info.cores, info.memory_bytes) == ("msm8996", None, 1, None)


@pytest.mark.parametrize("line", ["[ro.kernel.qemu]: [1]", "[ro.boot.qemu]: [1]", "[ro.hardware]: [ranchu]"])
def test_an_emulator_is_no_phone(line: str) -> None:
    assert is_emulated(properties(PIXEL.replace("[ro.hardware]: [shiba]", line)))


def test_conditions_are_the_hottest_plausible_processor_sensor_and_the_battery() -> None:
    found = conditions(WARM)
    assert (found.temperature_c, found.thermal_state) == (61.5, "serious")
    assert (found.battery_percent, found.charging, found.load_average) == (83.0, True, 2.51)


def test_without_processor_sensors_the_battery_s_temperature_counts() -> None:
    assert conditions(WARM.replace("zone BIG 61500\n", "")).temperature_c == 31.5


def test_a_phone_that_tells_nothing_leaves_everything_open() -> None:
    found = conditions("sh: dumpsys: not found\n")
    assert not any(value is not None for _, value in found)
