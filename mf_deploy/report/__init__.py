"""Results on disk, put on one page: HTML, Markdown or CSV."""

from mf_deploy.report.baseline import Comparison, compare
from mf_deploy.report.collect import Collection, collect
from mf_deploy.report.results import load_results, result_path, save_result

__all__ = [
    "Collection",
    "Comparison",
    "collect",
    "compare",
    "load_results",
    "render",
    "result_path",
    "save_result",
]


def render(collection: Collection, suffix: str, comparison: Comparison | None = None) -> str:
    """The report as ``.html``, ``.md`` or ``.csv``; the first two with a comparison if there is one."""
    if suffix == ".html":
        from mf_deploy.report.page import render_page

        return render_page(collection, comparison)
    from mf_deploy.report.tables import render_csv, render_markdown

    return render_markdown(collection, comparison) if suffix == ".md" else render_csv(collection)
