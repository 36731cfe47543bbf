"""A check for labels whose order is silently not the model's."""

import numpy as np

from mf_deploy.errors import MfDeployError

MAX_CLASSES = 5000
MIN_IMAGES = 100
MIN_GAIN = 0.2
MAX_P_VALUE = 1e-6


def refuse_permuted_labels(data: str, labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> None:
    """Raise an error when the reference is right far more often under another order of the labels.

    Args:
        labels: (N,) class indices as the data gives them.
        predictions: (N,) top-1 of the reference model on the same images.
    """
    own, renamed = accuracy_when_renamed(labels, predictions, num_classes)
    if renamed > own:
        raise MfDeployError(
            f"The labels of {data} look permuted",
            f"the PyTorch model is right on {100 * own:.1f} % of the images, but on {100 * renamed:.1f} % "
            "when each label is renamed to the class that it goes with",
            "Check the order of the classes: --labels on export, or the label file of --data.",
        )


def accuracy_when_renamed(
    labels: np.ndarray, predictions: np.ndarray, num_classes: int
) -> tuple[float, float]:
    """Accuracy as labelled, and under the best renaming where that is clearly better (else the same twice).

    The one-to-one renaming is fitted on every other image and judged on the rest, so that it is not
    believed for fitting noise; a reference that always gives one class gains nothing by it.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.stats import binomtest

    own = float((labels == predictions).mean()) if len(labels) else 0.0
    if len(labels) < MIN_IMAGES or own > 0.5 or num_classes > MAX_CLASSES:
        return own, own
    order = np.random.default_rng(0).permutation(len(labels))
    fit, test = order[::2], order[1::2]
    together = np.zeros((num_classes, num_classes), np.int32)
    np.add.at(together, (labels[fit], predictions[fit]), 1)
    _, renaming = linear_sum_assignment(together, maximize=True)
    before = labels[test] == predictions[test]
    after = renaming[labels[test]] == predictions[test]
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    gain = float(after.mean() - before.mean())
    certain = won > lost and binomtest(won, won + lost, alternative="greater").pvalue < MAX_P_VALUE
    if gain < MIN_GAIN or not certain or after.mean() < 2 * before.mean():
        return own, own
    return own, float(after.mean())
