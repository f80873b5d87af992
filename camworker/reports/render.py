"""Fill the page templates. Every page is one HTML file that loads nothing else and runs no script."""

from pathlib import Path
from typing import Any

import jinja2

from camworker import __version__


def render_page(name: str, **content: Any) -> str:
    """Return a page as HTML.

    Args:
        name: File name of the page; its template is `templates/{name}.j2`.
        **content: The variables of the template.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("camworker", "reports/templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(f"{name}.j2").render(version=__version__, **content)


def write_page(folder: str | Path, name: str, **content: Any) -> Path:
    """Write a page into a folder, which is created if it is missing, and return the page's path.

    Args:
        folder: Where the page is written.
        name: File name of the page, see `render_page`.
        **content: The variables of the template.
    """
    page = render_page(name, **content)
    path = Path(folder).absolute() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path
