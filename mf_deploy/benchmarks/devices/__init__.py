"""Where a model is timed, or its instructions are counted: one file a device."""

from mf_deploy.benchmarks.devices.device import Device
from mf_deploy.benchmarks.devices.host import Host
from mf_deploy.errors import MfDeployError, nearest
from mf_deploy.runtimes.arm import CPUS, DEVICE_PREFIX

DEVICES: dict[str, type[Device]] = {"host": Host}


def open_device(name: str, cores: str | None = None) -> Device:
    """The device called ``name`` that models are timed on.

    Args:
        name: ``host``, ``adb`` for the only Android phone, or ``adb:SERIAL``.
        cores: of a phone, that the process is bound to, e.g. ``4-7``.

    Raises:
        MfDeployError: there is no such device, or it cannot be used.
    """
    if name == "adb" or name.startswith("adb:"):
        from mf_deploy.benchmarks.devices.adb import Adb

        return Adb(name, cores)
    if cores is not None:
        raise MfDeployError(f"Cannot use --cores on {name}", "it is for phones", "Add --device adb.")
    if name not in DEVICES:
        names = [*DEVICES, "adb", *(DEVICE_PREFIX + cpu for cpu in CPUS)]
        raise MfDeployError(f"Unknown device {name!r}", "it is not supported", nearest(name, names))
    return DEVICES[name]()
