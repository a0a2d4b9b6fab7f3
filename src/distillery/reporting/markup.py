"""A table as Markdown and as LaTeX. What it says is decided elsewhere; here is only how each format writes it."""

import re
import unicodedata
from dataclasses import dataclass

# Greek letters stand in this field's titles as they do in its formulas.
_GREEK = {
    letter: unicodedata.name(letter).removeprefix("GREEK SMALL LETTER ").replace("LAMDA", "LAMBDA").lower()
    for letter in "αβγδεζηθικλμνξπρστυφχψω"
}
_LATEX = (
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {letter: f"$\\{name}$" for letter, name in _GREEK.items()}
    | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        '"': r"\char34{}",
        "<": "$<$",
        ">": "$>$",
        "|": "$|$",
        "±": r"$\pm$",
        "×": r"$\times$",
        "→": r"$\rightarrow$",
        "≤": r"$\leq$",
        "≥": r"$\geq$",
        "−": "$-$",
        "–": "--",
        "—": "---",
        "²": "$^2$",
    }
)
# An experiment of many columns is wider than a line of text. The document decides: with graphicx it is shrunk to fit.
LATEX_HEAD = (
    "% Needs \\usepackage{booktabs}; with \\usepackage{graphicx} wide tables are shrunk to the line.\n"
    r"\providecommand{\fittoline}[1]{\ifdefined\resizebox"
    r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{#1}\else#1\fi}"
    "\n"
)
_SIGN = re.compile(r"(?<![\w.)])([+-])(?=\d)")


@dataclass(frozen=True)
class Cell:
    """One field of a table, as plain text.

    What else is known of it is for formats with room behind the text: the number that rows are sorted by, what a reader
    may ask next, a verdict's or a gain's finding, and the run that it is about.
    """

    text: str
    bold: bool = False
    value: float | None = None
    hint: str = ""
    finding: str = ""
    run: str = ""


@dataclass(frozen=True)
class Sheet:
    """A table ready to be written: every text plain, every row as long as the headings.

    ``numeric`` says which columns are set flush right; ``notes`` are sentences that belong under the table.
    """

    name: str
    title: str
    headings: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()


def to_markdown(sheet: Sheet) -> str:
    """A pipe table under its title, with its notes."""
    from tabulate import tabulate

    body = tabulate(
        [[_markdown_cell(cell) for cell in row] for row in sheet.rows],
        headers=[escape_markdown(heading) for heading in sheet.headings],
        tablefmt="pipe",
        colalign=["right" if numeric else "left" for numeric in sheet.numeric],
        disable_numparse=True,
    )
    parts = [f"## {escape_markdown(sheet.title)}", body, *map(escape_markdown, sheet.notes)]
    return "\n\n".join(parts) + "\n"


def to_latex(sheet: Sheet, label: str) -> str:
    """A booktabs table in a float, with its title and notes as caption; a file of tables begins with LATEX_HEAD."""
    import pandas

    frame = pandas.DataFrame(
        [[_latex_cell(cell) for cell in row] for row in sheet.rows],
        columns=[escape_latex(heading) for heading in sheet.headings],
    )
    caption = " ".join([_sentence(sheet.title), *sheet.notes])
    latex: str = frame.style.hide(axis="index").to_latex(
        hrules=True,
        column_format="".join("r" if numeric else "l" for numeric in sheet.numeric),
        caption=escape_latex(caption),
        label=label,
        position="htbp",
        position_float="centering",
    )
    return latex.replace("\\begin{tabular}", "\\fittoline{%\n\\begin{tabular}").replace(
        "\\end{tabular}", "\\end{tabular}}"
    )


def escape_latex(text: str) -> str:
    """Plain text as LaTeX source, for any engine and without packages."""
    return "".join(_LATEX.get(character, character) for character in text)


def escape_markdown(text: str) -> str:
    """Plain text as Markdown that looks the same: no accidental emphasis, link, HTML, formula or table column."""
    text = re.sub(r"([\\`*\[\]<|~$]|&(?=[#\w]+;))", r"\\\1", text)
    # An underscore inside a word is only an underscore; escaping it would spoil names for those who read the source.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


def defuse(text: str) -> str:
    """Text that a spreadsheet shows as it is: a cell that begins so is a formula to it, and may start programs."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _markdown_cell(cell: Cell) -> str:
    return f"**{escape_markdown(cell.text)}**" if cell.bold else escape_markdown(cell.text)


def _latex_cell(cell: Cell) -> str:
    # A sign is no hyphen, also inside an interval.
    parts = _SIGN.split(cell.text)
    text = "".join(f"${part}$" if place % 2 else escape_latex(part) for place, part in enumerate(parts))
    return rf"\textbf{{{text}}}" if cell.bold else text


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."
