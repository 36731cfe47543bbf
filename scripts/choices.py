"""Comma-separated choices of these scripts."""

from typing import TypeVar

from mf_deploy.errors import MfDeployError

Choice = TypeVar("Choice", bound=str)


def chosen(text: str | None, choices: tuple[Choice, ...]) -> list[Choice]:
    """The ``choices`` that ``text`` names, in their own order; all of them without a text.

    Raises:
        MfDeployError: a word that is no choice.
    """
    wanted = choices if text is None else tuple(text.split(","))
    unknown = [word for word in wanted if word not in choices]
    if unknown:
        raise MfDeployError(
            f"Unknown {unknown[0]!r}", "not part of the sweep", f"One of {', '.join(choices)}."
        )
    return [word for word in choices if word in wanted]
