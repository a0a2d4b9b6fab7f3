"""A table as Markdown and as LaTeX. What it says is decided elsewhere; here is only how each format writes it."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from distillery.experiment.schema.experiment import Latex

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


_PLAIN = re.compile(r"(?P<sign>[+-]?)(?P<whole>\d[\d,]*)(?P<decimals>\.\d+)?(?: ± (?P<std>\d+(?:\.\d+)?))?")


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

    ``numeric`` says which columns are set flush right; ``notes`` are sentences that belong under the table; ``keys``
    are what the configuration calls the columns, where it does.
    """

    name: str
    title: str
    headings: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


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


def to_latex(sheet: Sheet, label: str, setting: Latex = Latex()) -> str:  # noqa: B008
    """A booktabs table in a float, with its title, notes and what all rows share as caption.

    A file of tables begins with ``latex_head``.
    """
    chosen, constants = _chosen(sheet, setting)
    columns = [[row[place] for row in sheet.rows] for place in chosen]
    formats = [
        _si_format(cells) if setting.siunitx and sheet.numeric[place] else ""
        for place, cells in zip(chosen, columns, strict=True)
    ]
    headings = [escape_latex(setting.headings.get(_key(sheet, place), sheet.headings[place])) for place in chosen]
    heads = [f"{{{text}}}" if si else text for text, si in zip(headings, formats, strict=True)]
    lines = [
        [(_si_cell(cell) if si else _latex_cell(cell)) for cell, si in zip(row, formats, strict=True)]
        for row in zip(*columns, strict=True)
    ]
    kinds = [si or ("r" if sheet.numeric[place] else "l") for place, si in zip(chosen, formats, strict=True)]
    caption = " ".join([_sentence(sheet.title), *sheet.notes, *([f"{'; '.join(constants)}."] if constants else [])])
    environment = "table*" if setting.wide else "table"
    return "\n".join(
        [
            rf"\begin{{{environment}}}[htbp]",
            r"\centering",
            rf"\caption{{{escape_latex(caption)}}}",
            rf"\label{{{label}}}",
            r"\smallskip",  # article.cls has no space below a caption
            r"\fittoline{%",
            rf"\begin{{tabular}}{{{''.join(kinds)}}}",
            r"\toprule",
            rf"{' & '.join(heads)} \\",
            r"\midrule",
            *(rf"{' & '.join(line)} \\" for line in lines),
            r"\bottomrule",
            r"\end{tabular}}",
            rf"\end{{{environment}}}",
            "",
        ]
    )


def latex_head(packages: Iterable[str] = ()) -> str:
    """What a file of tables begins with; tables of ``siunitx`` need that package too."""
    needed = "".join(f" and \\usepackage{{{name}}}" for name in packages)
    return LATEX_HEAD.replace("{booktabs};", f"{{booktabs}}{needed};")


def _key(sheet: Sheet, place: int) -> str:
    return sheet.keys[place] if sheet.keys else ""


def _chosen(sheet: Sheet, setting: Latex) -> tuple[list[int], list[str]]:
    """The places of the columns that are printed, and what the caption says of those that say the same in all rows."""
    places = range(len(sheet.headings))
    shown, constants = [], []
    for place in places:
        key, texts = _key(sheet, place), {row[place].text for row in sheet.rows}
        constant = len(sheet.rows) > 1 and len(texts) == 1 and key in ("n", "selection", "labels")
        if constant and key not in setting.columns:
            heading, (text,) = sheet.headings[place], texts
            constants.append(f"{heading} = {text}" if heading == "n" else f"{heading}: {text}")
        elif not setting.columns:
            shown.append(place)
    chosen = [place for key in setting.columns for place in places if _key(sheet, place) == key]
    return chosen or shown, constants


def _si_format(cells: Iterable[Cell]) -> str:
    """An S column that has room for all numbers among some cells; "" if there are none."""
    found = [match for cell in cells if (match := _PLAIN.fullmatch(cell.text))]
    if not found:
        return ""

    def widest(part: str) -> int:
        return max(len((match[part] or "").replace(",", "").lstrip(".")) for match in found)

    sign = "-" if any(match["sign"] for match in found) else ""
    uncertain = widest("std") and max(len(match["std"].replace(".", "")) for match in found if match["std"])
    room = f"{sign}{widest('whole')}.{widest('decimals')}" + (f"({uncertain})" if uncertain else "")
    commas = any("," in match["whole"] for match in found)
    grouped = ", group-separator={,}, group-minimum-digits=4" if commas else ""
    return rf"S[table-format={room}, separate-uncertainty, table-align-uncertainty=false, detect-weight{grouped}]"


def _si_cell(cell: Cell) -> str:
    match = _PLAIN.fullmatch(cell.text)
    if match is None:
        return f"{{{_latex_cell(cell)}}}"
    number = cell.text.replace(",", "").replace("±", r"\pm")
    return rf"\bfseries {number}" if cell.bold else number


def enumerated(words: Iterable[str]) -> str:
    """Words as a sentence has them: ``a, b and c``."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


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
