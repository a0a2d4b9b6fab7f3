"""Print the tables of an experiment on a terminal of any width."""

from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text


def print_experiment(path: Path, console: Console) -> None:
    """Print a Markdown file; of a table too wide for the terminal, the last columns are left out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for is_table, block in groupby(lines, lambda line: line.startswith("|")):
        if is_table:
            print_table([[cell.strip() for cell in line.strip("|").split("|")] for line in block], console)
        else:
            console.print(Markdown("\n".join(block), hyperlinks=False))


def print_table(rows: list[list[str]], console: Console) -> None:
    """Print a table: headings, Markdown's line about alignment, then rows."""
    headings, alignments, *body = rows
    for count in range(len(headings), 0, -1):
        table = Table(box=None, header_style="underline", pad_edge=False)
        for heading, alignment in zip(headings[:count], alignments, strict=False):
            table.add_column(heading, justify="right" if alignment.endswith(":") else "left", no_wrap=True)
        for row in body:
            table.add_row(*(Text(cell.strip("*"), "bold" if cell.startswith("**") else "") for cell in row[:count]))
        if Measurement.get(console, console.options.update(width=10_000), table).maximum <= console.width:
            break
    console.print()
    console.print(table)
    if count < len(headings):
        console.print(f"In the file also: {', '.join(headings[count:])}.", style="dim")
    console.print()
