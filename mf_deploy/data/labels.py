"""Class lists, and the check that the data's classes and the model's are the same in the same order."""

import re
from functools import cache
from importlib import resources
from pathlib import Path

from mf_deploy.data.label_file import read_lines
from mf_deploy.errors import MfDeployError, nearest

CLASS_LISTS = {"imagenet-1k": "imagenet_1k.txt", "tiny-imagenet-200": "tiny_imagenet_200.txt"}
MAX_CLASS_LIST_BYTES = 16 << 20

_WNID = re.compile(r"n\d{8}")


@cache
def _shipped(name: str) -> tuple[str, ...]:
    return tuple(resources.files("mf_deploy.data").joinpath(CLASS_LISTS[name]).read_text("utf-8").split())


def class_list(name: str) -> list[str]:
    """The classes of a well-known data set in the order of their indices.

    ``imagenet-1k``: the 1000 WordNet ids of ILSVRC 2012; ``tiny-imagenet-200``: the 200 of Tiny-ImageNet;
    both sorted, which is the order that their published checkpoints use.
    """
    if name not in CLASS_LISTS:
        raise MfDeployError(
            f"Unknown class list {name!r}", "it is not shipped", nearest(name, list(CLASS_LISTS))
        )
    return list(_shipped(name))


def read_labels(name_or_file: str) -> list[str]:
    """A model's class list: the name of a shipped one, or a text file with one class a line, in index order.

    What follows a tab on a line is ignored, so that ``wnid<TAB>words`` gives the wnids.

    Raises:
        MfDeployError: neither a known name nor a readable file, or a line without a class.
    """
    if name_or_file in CLASS_LISTS:
        return class_list(name_or_file)
    path = Path(name_or_file)
    fix = f"Give a text file with one class a line, or {' or '.join(CLASS_LISTS)}."
    if not path.exists() and not path.suffix:
        raise MfDeployError(f"Unknown class list {name_or_file!r}", "no such list or file", fix)
    labels = [line.split("\t")[0].strip() for line in read_lines(path, MAX_CLASS_LIST_BYTES, fix)]
    if "" in labels:
        raise MfDeployError(f"Cannot read {path}", f"line {labels.index('') + 1} has no class", fix)
    return labels


def indices_of(names: list[str], labels: list[str] | None, num_classes: int) -> dict[str, int]:
    """The model's index of each class of the data.

    ``labels`` is the model's list. Without one the order must follow from the names: those of a shipped list
    with ``num_classes`` classes, or as many names as classes, sorted.

    Raises:
        MfDeployError: the names and the model's classes do not fit, and what differs.
    """
    if labels is None:
        labels = _implied_order(names, num_classes)
    if len(labels) != num_classes:
        raise MfDeployError(
            "The class list does not fit the model",
            f"it names {len(labels)} classes, the model has {num_classes}",
            "Give the class list that the model was trained with.",
        )
    index = {label: position for position, label in enumerate(labels)}
    unknown = [name for name in names if name not in index]
    if unknown:
        raise _mismatch(names, unknown, labels)
    repeated = [name for name in names if labels.count(name) > 1]
    if repeated:
        raise MfDeployError(
            "The model's class list is ambiguous", f"it names {repeated[0]!r} twice", "Name every class once."
        )
    return {name: index[name] for name in names}


def check_range(largest: int, num_classes: int) -> None:
    """Refuse integer labels that the model has no class for."""
    if largest >= num_classes:
        raise MfDeployError(
            "The data's labels do not fit the model",
            f"they go up to {largest}, the model has {num_classes} classes (0 to {num_classes - 1})",
            "Give the data that the model was trained for; the first class is 0.",
        )


def shipped_order(names: list[str], num_classes: int) -> list[str] | None:
    """The shipped class list with ``num_classes`` classes that holds all ``names``, or None."""
    lists = [class_list(name) for name in CLASS_LISTS]
    return next((x for x in lists if len(x) == num_classes and set(names) <= set(x)), None)


def _implied_order(names: list[str], num_classes: int) -> list[str]:
    shipped = shipped_order(names, num_classes)
    if shipped is not None:
        return shipped
    if len(names) != num_classes:
        raise MfDeployError(
            "The data's classes do not fit the model",
            f"the data has {len(names)} classes, the model {num_classes}, and the model names none",
            "Give all class folders, or give the model its class list.",
        )
    if all(name.isascii() and name.isdigit() for name in names) and sorted(names, key=int) != sorted(names):
        raise MfDeployError(
            "The order of the data's classes is unclear",
            "the folders are numbers, and 10 sorts before 2 by name but after it by value",
            "Give the model its class list.",
        )
    return sorted(names)


def _mismatch(names: list[str], unknown: list[str], labels: list[str]) -> MfDeployError:
    why = f"{len(unknown)} of its {len(names)} classes are not the model's, the first is {unknown[0]!r}"
    fix = "Give data with the model's classes."
    data_is_wnids, model_is_wnids = (
        all(_WNID.fullmatch(name) for name in group) for group in (names, labels)
    )
    if data_is_wnids != model_is_wnids:
        kinds = [f"WordNet ids ({names[0]})", f"words ({labels[0]!r})"]
        if model_is_wnids:
            kinds = [f"words ({names[0]!r})", f"WordNet ids ({labels[0]})"]
        why = f"its folders are {kinds[0]}, the model's classes {kinds[1]}"
        fix = "Name the folders as the model's classes, or give the model a class list of the folders' kind."
    elif len(names) != len(labels):
        why += f" ({len(labels)} classes, such as {labels[0]!r})"
    return MfDeployError("The data's classes do not fit the model", why, fix)
