"""The one error type: what went wrong, why, and how to fix it, on one line."""

BAD_INPUT = 2
MISSING_TOOL = 3
GATE_FAILED = 1
MAX_LISTED = 20


class MfDeployError(Exception):
    """A failure that the user can act on; printed as one line, without a traceback.

    ``exit_code`` is 2 for bad input, 3 for a missing tool (``fix`` is then the command that
    installs it), and 1 for a failed gate.
    """

    def __init__(self, what: str, why: str, fix: str, exit_code: int = BAD_INPUT) -> None:
        self.what, self.why, self.fix, self.exit_code = what, why, fix, exit_code
        super().__init__(" ".join(f"{what}: {why}. {fix}".split()))


def nearest(word: str, choices: list[str]) -> str:
    """A sentence that names the closest of ``choices`` to ``word``, or lists them all."""
    import difflib

    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    listed = ", ".join(choices[:MAX_LISTED]) + (", …" if len(choices) > MAX_LISTED else "")
    return f"Did you mean {close[0]}?" if close else f"Choose one of: {listed}."


def require(module: str, extra: str) -> None:
    """Raise an error with the install command unless ``module`` can be imported."""
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise MfDeployError(
            f"{module} is not installed",
            f"the {extra} extra provides it",
            f"Run: pip install 'mf-deploy[{extra}]'",
            MISSING_TOOL,
        )
