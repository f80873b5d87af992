"""Write the page of a summary and parse it strictly."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from camworker.ledger.recipe import Recipe
from camworker.metrics.ground_truth.truth import Truth
from camworker.reports.cards import Section
from camworker.reports.summary_page import write_summary
from support.summaries import HOSTILE, RECIPE, summary_of

_VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """A parsed page, whose tags have to be balanced.

    Attributes:
        text: The page.
        tags: The names of the tags.
        attributes: The name and the attributes of each tag.
        cells: The text of the cells of each table row.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[list[str]] = []
        self._open: list[str] = []
        self.feed(self.text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)
        if tag == "tr":
            self.cells.append([])
        elif tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self._open):
            self.cells[-1][-1] += data

    def row(self, title: str) -> list[str]:
        """Return the cells of the first table row with a title, with white space normalised."""
        cells = next(cells for cells in self.cells if cells and " ".join(cells[0].split()) == title)
        return [" ".join(cell.split()) for cell in cells[1:]]


def write(
    folder: Path,
    rows: Any,
    truth: Truth,
    recipe: Recipe = RECIPE,
    sections: tuple[Section, ...] = (),
    others: tuple[Recipe, ...] = (),
    **about: Any,
) -> Page:
    summary, facts = summary_of(rows, truth, recipe, **about)
    path = write_summary(
        folder, summary, [recipe, *others], facts, sections, output=HOSTILE, truth="truth.csv"
    )
    return Page(path)
