"""What every command shares: how errors end it, how it draws, and the values it accepts."""

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from mf_deploy.errors import BAD_INPUT, MfDeployError, nearest

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTION = "Interrupted: what was finished is kept, and nothing that is half-written."
INTERRUPTED = 130
CLOSED_PIPE = 141
PIPED_WIDTH = 140


def run_command(command: click.Command, arguments: list[str] | None = None) -> None:
    """Run a click command; our errors become one line on stderr and an exit code, never a traceback.

    ``arguments`` are those of the command line where none are given.
    """
    try:
        name = None if arguments is None else command.name
        result = command.main(arguments, name, standalone_mode=False)
    except MfDeployError as error:
        _fail(str(error), error.exit_code)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        _fail(f"{' '.join(error.format_message().split())} See {command.name} --help.", BAD_INPUT)
    except (KeyboardInterrupt, click.Abort):
        _fail(INTERRUPTION, INTERRUPTED)
    except BrokenPipeError:
        _leave_closed_pipe()
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        _fail(f"Cannot read or write{where}: {error.strerror or error}.", BAD_INPUT)
    sys.exit(result if isinstance(result, int) else 0)


def _fail(line: str, exit_code: int) -> None:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(exit_code)


def _leave_closed_pipe() -> None:
    """Whoever read our output has enough, e.g. ``| head``: end without a word, also at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(CLOSED_PIPE)


class Name(click.ParamType):
    """One of a list of words; a wrong one is answered with the nearest right one."""

    name = "name"

    def __init__(self, kind: str, choices: Iterable[str]) -> None:
        self.kind, self.choices = kind, list(choices)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in self.choices:
            what = f"Unknown {self.kind} {value!r}"
            raise MfDeployError(what, "it is not supported", nearest(value, self.choices))
        return value

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "[" + "|".join(self.choices) + "]"


class Triple(click.ParamType):
    """Three comma-separated numbers, e.g. a mean: ``0.485,0.456,0.406``."""

    name = "R,G,B"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != 3:
            what = f"Bad {param.name if param else 'value'} {value!r}"
            raise MfDeployError(what, "not three numbers", "Write R,G,B.")
        return numbers


def console(stderr: bool = False) -> "Console":
    """Where tables go: standard output (or error), wide enough for them when it is a file or a pipe."""
    from rich.console import Console

    on_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, width=None if on_terminal else PIPED_WIDTH)


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, drawn only on a terminal; yields what hears (done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    out = Console(stderr=True)
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def working(label: str) -> Iterator[None]:
    """A spinner on standard error while the block runs, drawn only on a terminal; Ctrl-C ends the process.

    The converters that run in such blocks swallow KeyboardInterrupt in bare ``except`` clauses, or crash
    when it passes through their C++ code. So it is not raised there: what is half-written is removed, and
    the process ends.
    """
    from rich.console import Console

    from mf_deploy.artifact import discard_unfinished

    stderr, show_cursor = os.dup(2), "\x1b[?25h" if sys.stderr.isatty() else ""

    def end(signal_number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        discard_unfinished()
        os.write(stderr, f"{show_cursor}\nerror: {INTERRUPTION}\n".encode())
        os._exit(INTERRUPTED)

    before = signal.getsignal(signal.SIGINT)
    handled = before is signal.default_int_handler
    try:
        if handled:
            signal.signal(signal.SIGINT, end)
        with Console(stderr=True).status(label):
            yield
    finally:
        if handled:
            signal.signal(signal.SIGINT, before)
        os.close(stderr)
