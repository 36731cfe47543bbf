"""Run several sessions on the same images and count, for each, what the statistics need."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from mf_deploy.artifact import Artifact
from mf_deploy.data.images import Batch
from mf_deploy.errors import MfDeployError
from mf_deploy.evaluation.statistics import LogitError, label_ranks
from mf_deploy.export.target import OUTPUT_NAME
from mf_deploy.runtimes.session import Session

TOP_K = 5


@dataclass(frozen=True)
class Subject:
    """An artifact, its open session, and the session of the reference to compare it with."""

    artifact: Artifact
    session: Session
    against: Session


@dataclass
class Tally:
    """A session, the time it took, and how often it was right."""

    session: Session
    seconds: float = 0.0
    top1: int = 0
    top5: int = 0

    def run(self, pictures: np.ndarray) -> np.ndarray:
        """(N, classes) logits of (N, H, W, 3) uint8 pictures; the time is added up."""
        start = time.perf_counter()
        logits = self.session.run(pictures)[OUTPUT_NAME]
        self.seconds += time.perf_counter() - start
        return logits

    def count(self, ranks: np.ndarray) -> None:
        """Add the label ranks (N,) of one batch."""
        self.top1 += int((ranks == 0).sum())
        self.top5 += int((ranks < TOP_K).sum())


@dataclass
class PairedTally(Tally):
    """The tally of an artifact's session, and how it differs from the reference on the same images.

    ``lost``: images that only the reference gets right; ``gained``: only the artifact;
    ``agreed``: same top-1; ``non_finite``: a NaN or infinite logit, which is never right.
    """

    lost: int = 0
    gained: int = 0
    agreed: int = 0
    non_finite: int = 0
    error: LogitError = field(default_factory=LogitError)

    def pair(self, reference_ranks: np.ndarray, ranks: np.ndarray) -> None:
        """Add the label ranks (N,) that both gave on one batch."""
        self.lost += int(((reference_ranks == 0) & (ranks != 0)).sum())
        self.gained += int(((reference_ranks != 0) & (ranks == 0)).sum())

    def compare(self, reference: np.ndarray, logits: np.ndarray) -> None:
        """Add the logits (N, classes) that both gave on one batch."""
        finite = np.isfinite(logits).all(axis=1)
        self.non_finite += int((~finite).sum())
        self.agreed += int((reference.argmax(axis=1) == logits.argmax(axis=1))[finite].sum())
        self.error.add(reference[finite], logits[finite])


class Comparison:
    """Several artifacts and their references, which run once each, over any number of batches."""

    def __init__(self, subjects: Sequence[Subject]) -> None:
        self.images = self.labelled = 0
        self.references = {id(subject.against): Tally(subject.against) for subject in subjects}
        self.tallies = [(subject, PairedTally(subject.session)) for subject in subjects]
        self._labels: list[np.ndarray] = []
        self._predictions: dict[int, list[np.ndarray]] = {key: [] for key in self.references}

    def add(self, batch: Batch, pool: ThreadPoolExecutor) -> None:
        """Run every session on the pictures of a batch and count.

        Raises:
            MfDeployError: a reference gives NaN or infinite logits.
        """
        logits = self._run(batch, pool)
        known = batch.labels >= 0
        labels = batch.labels[known]
        self.images += len(known)
        self.labelled += len(labels)
        self._labels.append(labels.astype(np.int32))
        ranks: dict[int, np.ndarray] = {}
        for key, tally in self.references.items():
            values = logits[id(tally)]
            _require_finite(values, tally.session, batch)
            ranks[key] = label_ranks(values[known], labels)
            tally.count(ranks[key])
            self._predictions[key].append(values[known].argmax(axis=1).astype(np.int32))
        for subject, paired in self.tallies:
            values, key = logits[id(paired)], id(subject.against)
            own = label_ranks(values[known], labels)
            paired.count(own)
            paired.pair(ranks[key], own)
            paired.compare(logits[id(self.references[key])], values)

    def labels_and_predictions(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(labels, top-1 of the reference) of all labelled images, for each reference."""
        labels = np.concatenate(self._labels)
        return [(labels, np.concatenate(parts)) for parts in self._predictions.values()]

    def _run(self, batch: Batch, pool: ThreadPoolExecutor) -> dict[int, np.ndarray]:
        """Logits by tally. The slowest starts first, so that the cores stay busy to the end."""
        tallies: list[Tally] = [*self.references.values(), *(paired for _, paired in self.tallies)]
        tallies.sort(key=lambda tally: -tally.seconds)
        futures = {id(tally): pool.submit(tally.run, batch.pictures) for tally in tallies}
        return {key: future.result() for key, future in futures.items()}


def _require_finite(logits: np.ndarray, session: Session, batch: Batch) -> None:
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if bad.size:
        raise MfDeployError(
            f"No reference from {session.name}",
            f"PyTorch gives NaN or infinite logits on {batch.names[bad[0]]}",
            "Check the checkpoint, then export again.",
        )
