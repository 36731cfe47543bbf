"""The values that mf-bench accepts, and the protocol that they make."""

import re
from typing import TYPE_CHECKING, Any

import click

from mf_deploy.errors import MfDeployError

if TYPE_CHECKING:
    from mf_deploy.benchmarks import Protocol


class Threads(click.ParamType):
    """Comma-separated thread counts, e.g. ``1,2``."""

    name = "N[,N...]"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isdecimal() and 1 <= int(part) <= 1024 for part in parts):
            raise MfDeployError(
                f"Bad --threads {value}", "not whole numbers of at least 1", "Write e.g. 1,2."
            )
        return tuple(dict.fromkeys(int(part) for part in parts))


class Duration(click.ParamType):
    """Seconds, also as 90s, 30m or 1h."""

    name = "DURATION"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", str(value))
        seconds = float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2] or "s"] if found else 0.0
        if not 1 <= seconds <= 86_400:
            what = f"Bad {param.opts[0] if param else 'duration'} {value}"
            raise MfDeployError(what, "not a time of 1 s to 24 h", "Write e.g. 90s, 30m or 1h.")
        return seconds


def protocol_of(length: "dict[str, Any]", cool_down: float, seed: int) -> "Protocol":
    """The protocol of the one option that says when to stop, or MLPerf Mobile's.

    Args:
        length: of ``--quick``, ``--sustained``, ``--runs`` and ``--seconds``, those that were given.
    """
    from mf_deploy.benchmarks import Protocol

    if len(length) > 1:
        first, second, *_ = length
        raise MfDeployError(
            f"Cannot use {first} with {second}", "each says when to stop", "Pass one of them."
        )
    rest: dict[str, float] = {"cool_down_seconds": cool_down, "seed": seed}
    option, value = next(iter(length.items()), (None, 0))
    if option == "--quick":
        return Protocol.quick(**rest)
    if option == "--runs":
        return Protocol.quick(min_runs=value, **rest)
    if option:
        return Protocol.sustained(value, **rest)
    return Protocol.single_stream(**rest)
