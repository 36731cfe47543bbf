"""Where a model is timed: one file a device."""

from mf_deploy.benchmarks.devices.device import Device
from mf_deploy.benchmarks.devices.host import Host
from mf_deploy.errors import MfDeployError, nearest

DEVICES: dict[str, type[Device]] = {"host": Host}


def open_device(name: str) -> Device:
    """The device called ``name``.

    Raises:
        MfDeployError: there is no such device.
    """
    if name not in DEVICES:
        raise MfDeployError(f"Unknown device {name!r}", "it is not supported", nearest(name, list(DEVICES)))
    return DEVICES[name]()
