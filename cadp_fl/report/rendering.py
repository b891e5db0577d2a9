"""Templates to HTML: every value is escaped, and a name that is not given is an error."""

from collections.abc import Callable, Mapping
from typing import Any

import jinja2

__all__ = ["render_page"]


def render_page(template: str, filters: Mapping[str, Callable[..., str]], **values: Any) -> str:
    """Return a page from one of this package's templates.

    Args:
        filters: that it uses, by name.
        values: that it shows.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cadp_fl.report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= filters
    return environment.get_template(template).render(**values)
