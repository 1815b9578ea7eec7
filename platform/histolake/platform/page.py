"""HTML pages that need nothing but themselves: one stylesheet for all of them, and one way to fill a template.

A page asks no machine for anything: pictures are inside it, fonts are the reader's own, and a policy in its head
forbids the browser to fetch. Every value is escaped unless it is `Markup`, for names come from others' files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

__all__ = ["POLICY", "fill", "stylesheet"]

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def stylesheet() -> str:
    """The rules that all pages share, as CSS."""
    return files("histolake.platform").joinpath("page.css").read_text(encoding="utf-8")


def fill(
    package: str, template: str, values: Mapping[str, Any], filters: Mapping[str, Callable[..., Any]] | None = None
) -> str:
    """The page that a template of `package` makes of `values`. The template also finds `stylesheet` and `policy`.

    A name that the template uses and nobody gave is an error, never an empty place.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    source = files(package).joinpath(template).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(filters or {})
    return environment.from_string(source).render(stylesheet=Markup(stylesheet()), policy=POLICY, **values)
