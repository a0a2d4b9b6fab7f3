"""Tables as one page that needs nothing else: no network, no other file. ``page.html`` is its template."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from distillery.reporting.markup import Cell, Sheet
from distillery.reporting.run_notes import HEIGHT, WIDTH, RunNote


@dataclass(frozen=True)
class Part:
    """A table on its page: its cells, and the LaTeX to copy; without cells it stands on a page of its own."""

    name: str
    title: str
    sheet: Sheet | None
    latex: str


def _classes(cell: Cell, numeric: bool) -> str:
    """How a cell looks: as a number, as a finding."""
    return " ".join(filter(None, ("number" * numeric, cell.finding.replace(" ", "-"))))


def to_html(
    experiment: str, introduction: str, parts: Sequence[Part], notes: Sequence[RunNote], reading: str, up: str
) -> str:
    """The page of an experiment or of one of its tables.

    ``introduction`` and ``reading``, how to read it, are Markdown; all else is plain text. ``notes`` are of the
    runs that its cells lead to. ``up`` leads from the page's folder to that of the results.
    """
    from jinja2 import Environment, StrictUndefined
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    def markdown(text: str) -> Markup:
        # It was escaped when it was written; HTML in it is text, too.
        return Markup(MarkdownIt("commonmark", {"html": False}).render(text))

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"markdown": markdown, "quoted": lambda text: quote(text, safe="")}
    template = environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    texts = {"experiment": experiment, "introduction": introduction, "reading": reading, "up": up}
    noted = {note.run for note in notes}
    page: str = template.render(
        **texts, parts=parts, notes=notes, noted=noted, width=WIDTH, height=HEIGHT, zip=zip, classes=_classes
    )
    return page + "\n"
