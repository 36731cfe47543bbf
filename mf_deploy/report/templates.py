"""The report's templates, set up once for every page: every text from outside is escaped."""

from pathlib import Path

import jinja2


def environment() -> jinja2.Environment:
    """An environment for the templates of this room; a name that a template does not get is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
