"""What a device is: it times one artifact, or two in turns, and says what it is."""

from abc import ABC, abstractmethod

from mf_deploy.artifact import Artifact
from mf_deploy.benchmarks.latency import DeviceInfo, Kind, LatencyRatio, Measurement
from mf_deploy.benchmarks.measure import Progress
from mf_deploy.benchmarks.protocol import Protocol


class Device(ABC):
    """A place where models are timed. ``kind`` says what its times are worth."""

    kind: Kind
    info: DeviceInfo
    cores: str | None = None  # that the process is bound to, e.g. 4-7
    lost: bool = False  # it went away: nothing more can be timed on it

    @property
    @abstractmethod
    def slug(self) -> str:
        """A name for files: the same for the same kind of device, e.g. ``host-amd-epyc``."""

    @abstractmethod
    def reason_not_to_run(self, artifact: Artifact) -> str | None:
        """Why a time of ``artifact`` here would not be a latency; None where it is one."""

    @abstractmethod
    def check_threads(self, threads: int) -> None:
        """Refuse a number of threads that the device does not have."""

    @abstractmethod
    def measure(
        self, artifact: Artifact, threads: int, protocol: Protocol, progress: Progress
    ) -> Measurement:
        """Time one artifact, alone.

        Raises:
            MfDeployError: the engine is missing, refuses the model, or dies.
        """

    @abstractmethod
    def compare(
        self, first: Artifact, second: Artifact, threads: int, protocol: Protocol, progress: Progress
    ) -> LatencyRatio:
        """Time two artifacts in turns."""
