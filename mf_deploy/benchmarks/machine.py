"""What this machine is and how it is doing."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import psutil

from mf_deploy.benchmarks.latency import Conditions, DeviceInfo


def this_machine() -> DeviceInfo:
    """The machine that Python runs on."""
    return DeviceInfo(
        name="host",
        cpu=cpu_name(),
        cores=usable_cores(),
        memory_bytes=psutil.virtual_memory().total,
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
    )


def cpu_name() -> str:
    """The processor's own name where the system tells it, else the architecture."""
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return (
            subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
            or platform.machine()
        )
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def conditions() -> Conditions:
    """Load, hottest sensor and battery, as far as the system tells."""
    read_sensors = getattr(psutil, "sensors_temperatures", dict)
    temperatures = [sensor.current for group in read_sensors().values() for sensor in group]
    battery = getattr(psutil, "sensors_battery", lambda: None)()
    return Conditions(
        load_average=round(psutil.getloadavg()[0], 2),
        temperature_c=max(temperatures, default=None),
        battery_percent=battery.percent if battery else None,
        charging=battery.power_plugged if battery else None,
    )


def rss_bytes() -> int:
    """Resident memory of this process now."""
    return int(psutil.Process().memory_info().rss)


def peak_rss_bytes() -> int:
    """Largest resident memory that this process has had.

    Linux: VmHWM, which unlike ``ru_maxrss`` does not inherit the parent's peak over fork and exec.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):
        return int(memory.peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
