"""Results on disk, put on one page: HTML, Markdown or CSV."""

from mf_deploy.report.collect import Collection, collect
from mf_deploy.report.results import load_results, result_path, save_result

__all__ = ["Collection", "collect", "load_results", "render", "result_path", "save_result"]


def render(collection: Collection, suffix: str) -> str:
    """The report as ``.html``, ``.md`` or ``.csv``."""
    if suffix == ".html":
        from mf_deploy.report.page import render_page

        return render_page(collection)
    from mf_deploy.report.tables import render_csv, render_markdown

    return render_markdown(collection) if suffix == ".md" else render_csv(collection)
