"""What an Android phone tells of itself: its model and chip, its temperatures and battery."""

import re
from collections.abc import Mapping

from mf_deploy.benchmarks.latency import Conditions, DeviceInfo, ThermalState

# One command each, so that a reading costs the phone one process tree.
DESCRIBE = "getprop; echo; grep MemTotal /proc/meminfo; cat /sys/devices/system/cpu/possible"
READ_CONDITIONS = (
    "cat /proc/loadavg; echo; dumpsys battery; dumpsys thermalservice | grep -m 1 'Thermal Status';"
    " for zone in /sys/class/thermal/thermal_zone*;"
    " do echo zone $(cat $zone/type $zone/temp); done 2>/dev/null"
)
EMULATORS = ("ranchu", "goldfish", "cutf_cvm", "vsoc_arm64")
PROCESSOR_ZONE = re.compile(r"cpu|soc|tsens|big|little|mid", re.IGNORECASE)
STATES: tuple[ThermalState, ...] = (
    "nominal", "nominal", "fair", "serious", "critical", "critical", "critical",
)  # fmt: skip


def properties(text: str) -> dict[str, str]:
    """``getprop``'s lines: ``[name]: [value]``."""
    return dict(re.findall(r"^\[([^\]\n]+)\]: \[([^\]\n]*)\]", text, re.MULTILINE))


def is_emulated(of: Mapping[str, str]) -> bool:
    """Whether these are the properties of an emulator, whose times are no phone's."""
    virtual = any(of.get(name) == "1" for name in ("ro.kernel.qemu", "ro.boot.qemu"))
    return virtual or of.get("ro.hardware", "") in EMULATORS


def device_info(serial: str, text: str) -> DeviceInfo:
    """The phone, from the output of ``DESCRIBE``."""
    of = properties(text)
    chip = " ".join(filter(None, (of.get("ro.soc.manufacturer"), of.get("ro.soc.model"))))
    soc = chip or of.get("ro.board.platform") or of.get("ro.hardware")
    model = " ".join(filter(None, (of.get("ro.product.manufacturer"), of.get("ro.product.model"))))
    memory = re.search(r"^MemTotal:\s*(\d+) kB", text, re.MULTILINE)
    last = re.search(r"^0-(\d+)$", text, re.MULTILINE)
    release, level = of.get("ro.build.version.release", "?"), of.get("ro.build.version.sdk", "?")
    return DeviceInfo(
        name=f"adb:{serial}"[:200],
        cpu=(soc or "unknown processor")[:200],
        cores=int(last[1]) + 1 if last else 1,
        memory_bytes=int(memory[1]) * 1024 if memory else None,
        os=f"Android {release} (API {level})"[:200],
        model=model[:200] or None,
        soc=soc[:200] if soc else None,
    )


def conditions(text: str) -> Conditions:
    """From the output of ``READ_CONDITIONS``; what a phone does not tell is None.

    The temperature is that of the hottest sensor of the processor, or else the battery's.
    """
    load = re.match(r"(\d+\.\d+) ", text)
    level, scale, battery = (_number(text, name) for name in ("level", "scale", "temperature"))
    status = re.search(r"Thermal Status: (\d+)", text)
    state = int(status[1]) if status else None
    powered = re.findall(r"^\s*(?:AC|USB|Wireless|Dock) powered: (true|false)$", text, re.MULTILINE)
    zones = re.findall(r"^zone (\S+) (-?\d+)$", text, re.MULTILINE)
    degrees = [_celsius(int(value)) for name, value in zones if PROCESSOR_ZONE.search(name)]
    plausible = [value for value in degrees if 0 < value < 150]
    return Conditions(
        load_average=float(load[1]) if load else None,
        temperature_c=max(plausible) if plausible else battery / 10 if battery is not None else None,
        thermal_state=None if state is None else STATES[state] if state < len(STATES) else "unknown",
        battery_percent=min(100.0, 100 * level / scale) if level is not None and scale else None,
        charging="true" in powered if powered else None,
    )


def _number(text: str, name: str) -> int | None:
    """A line of ``dumpsys battery``; its temperature is in tenths of a degree."""
    found = re.search(rf"^\s*{name}: (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else None


def _celsius(value: int) -> float:
    """Kernels give thousandths of a degree, a few of them degrees."""
    return value / 1000 if abs(value) > 1000 else float(value)
