"""ARM CPUs in emulation: the engines' own ARM builds run, so results are theirs, and instructions count.

QEMU runs one process of the target's Python with the published ARM wheels of the engines. Emulated time
means nothing and is never shown.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from mf_deploy.errors import MfDeployError, nearest

DEVICE_PREFIX = "arm:"


@dataclass(frozen=True)
class Cpu:
    """A CPU that QEMU can be: its name there, and what the kernel of a phone with it would report.

    ``part`` is Arm's number of the core, by which engines pick the kernels that were tuned for it.
    """

    qemu: str
    part: int
    features: str
    stands_for: str


_ARMV8 = "fp asimd aes pmull sha1 sha2 crc32 cpuid"
_DOTPROD = _ARMV8 + " atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
_I8MM = _DOTPROD + " jscvt fcma sha3 sha512 asimdfhm ilrcpc flagm sb dcpodp flagm2 frint i8mm bf16 bti"

CPUS = {
    "cortex-a72": Cpu("cortex-a72", 0xD08, _ARMV8, "older phones: no dot products"),
    "cortex-a76": Cpu("cortex-a76", 0xD0B, _DOTPROD, "phones of 2019 to 2021: int8 dot products"),
    # Plain "max" has SVE, which phones' engines do not use and QEMU is slow at; it says it is a Cortex-A710.
    "max": Cpu("max,sve=off", 0xD47, _I8MM, "current phones: int8 matrix products"),
}


def cpu_of(device: str) -> str:
    """The CPU that a device like ``arm:cortex-a76`` names.

    Raises:
        MfDeployError: there is no such device.
    """
    return named_cpu(device, DEVICE_PREFIX, CPUS)


def named_cpu(device: str, prefix: str, cpus: Iterable[str]) -> str:
    """The one of ``cpus`` that ``device`` names behind ``prefix``.

    Raises:
        MfDeployError: there is no such device.
    """
    devices = {prefix + cpu: cpu for cpu in cpus}
    if device not in devices:
        what = f"Unknown device {device!r}"
        raise MfDeployError(what, "it is not supported", nearest(device, ["host", *devices]))
    return devices[device]
