"""``mf-deploy models``: what can be exported by name."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from mf_deploy.models.counting import ModelSummary


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def models(as_json: bool) -> None:
    """List the models: input, counted and published parameters and multiply-adds, accuracy, source."""
    import torch

    from mf_deploy.cli.command import console
    from mf_deploy.models import list_models
    from mf_deploy.models.counting import ModelList, summarize

    torch.set_num_threads(1)  # counting runs each model once on one image: more threads only wait
    summaries = [summarize(spec) for spec in list_models()]
    if as_json:
        click.echo(ModelList(models=summaries).model_dump_json(indent=2))
    else:
        console().print(_table(summaries))


def _table(summaries: "list[ModelSummary]") -> "Table":
    from rich import box
    from rich.table import Table

    sources = list(dict.fromkeys(model.source for model in summaries))
    notes = "\n".join(f"{number}  {source}" for number, source in enumerate(sources, start=1))
    caption = (
        f"M = million, MACs = multiply-adds of one image of px × px; published figures in brackets\n{notes}"
    )
    table = Table(box=box.SIMPLE, pad_edge=False, caption=caption, caption_justify="left")
    table.add_column("model", no_wrap=True)
    for column in ("px", "params M", "MACs M", "top-1 %", "ref"):
        table.add_column(column, justify="right", no_wrap=True)
    for model in summaries:
        table.add_row(
            model.name,
            f"{model.input_size}",
            f"{model.params / 1e6:.2f}{_bracketed(model.published_params_m)}",
            f"{model.macs / 1e6:.0f}{_bracketed(model.published_macs_m)}",
            _bracketed(model.published_top1).strip(),
            f"{sources.index(model.source) + 1}",
        )
    return table


def _bracketed(published: float | None) -> str:
    return "" if published is None else f" ({published:g})"
