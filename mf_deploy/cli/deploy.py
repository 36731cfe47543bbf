"""``mf-deploy``: the commands that are about the installation rather than about one model."""

from importlib import import_module

import click

from mf_deploy.cli.command import run_command
from mf_deploy.errors import MfDeployError, nearest

SUBCOMMANDS = ("doctor", "models", "setup")

EPILOG = """\b
Examples:
  mf-deploy doctor
  mf-deploy models
"""


class LazyGroup(click.Group):
    """A group whose subcommand X is the function X of ``mf_deploy.cli.X``, imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        if cmd_name not in SUBCOMMANDS:
            raise MfDeployError(
                f"Unknown command {cmd_name!r}", "mf-deploy has no such", nearest(cmd_name, list(SUBCOMMANDS))
            )
        return getattr(import_module(f"mf_deploy.cli.{cmd_name}"), cmd_name)


@click.group(
    "mf-deploy",
    cls=LazyGroup,
    invoke_without_command=True,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="mf-deploy")
@click.pass_context
def deploy(ctx: click.Context) -> None:
    """From a Mobile-Former checkpoint to models that phones run: this installation and its models.

    The work itself: mf-export, mf-quantize, mf-check, mf-bench, mf-report.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    run_command(deploy)
