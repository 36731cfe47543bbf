"""Where a model is timed, or its instructions are counted: one file a device."""

from mf_deploy.benchmarks.devices.device import Device
from mf_deploy.benchmarks.devices.host import Host
from mf_deploy.errors import MfDeployError, nearest
from mf_deploy.runtimes.arm import CPUS, DEVICE_PREFIX

DEVICES: dict[str, type[Device]] = {"host": Host}


def open_device(name: str) -> Device:
    """The device called ``name`` that models are timed on.

    Raises:
        MfDeployError: there is no such device.
    """
    if name not in DEVICES:
        names = [*DEVICES, *(DEVICE_PREFIX + cpu for cpu in CPUS)]
        raise MfDeployError(f"Unknown device {name!r}", "it is not supported", nearest(name, names))
    return DEVICES[name]()
