"""Any text survives Markdown and LaTeX; what pdflatex makes of it is looked at for real where it is installed."""

import re
import shutil
import string
import subprocess

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from distillery.reporting.markup import LATEX_HEAD, Cell, Sheet, escape_latex, escape_markdown, to_latex, to_markdown

NASTY = r"R_50 & 8% of #1: a^b ~ {x} \y $z$ <i> a|b *c* `d` [e](f) ± – → α √" + '"'
AWKWARD = Sheet(
    "awkward",
    "100 % of R_50 & α/T → {small}",
    ("Run", "Top-1 (%)", "Difference", "Difference"),
    (False, True, True, True),
    (
        (Cell("a_b^c~d"), Cell("91.00 ± 1.00", bold=True), Cell("-0.50"), Cell("–")),
        (Cell(r"\x{y}$z$<|>#"), Cell("90.00"), Cell("+0.50"), Cell("0.00", bold=True)),
    ),
    ("Measured on a 4 GHz CPU & 1 GPU, 50 % idle.",),
)


def rendered_text(markdown):
    """What a reader sees of one line of Markdown, and whether it is plain text."""
    (paragraph,) = [token for token in MarkdownIt("commonmark").parse(markdown) if token.type == "inline"]
    return "".join(token.content for token in paragraph.children), {token.type for token in paragraph.children}


@given(st.text(alphabet=string.ascii_letters + string.digits + "_*`[]()<>|~\\&#;.:%$^{} ±α", min_size=1))
@example("a_b __c__ _d_ *e* `f` <i> &amp; [x](y)")
def test_markdown_shows_the_text_as_it_is(text):
    text = "x " + " ".join(text.split()) + " x"
    assert rendered_text(escape_markdown(text)) == (text, {"text"})


def test_names_stay_readable_in_markdown_source():
    assert escape_markdown("mobilenet_v1-mgd-amp") == "mobilenet_v1-mgd-amp"


def test_latex_escapes_everything_special():
    assert escape_latex("50 % of R_50 & $x$ ± 1") == r"50 \% of R\_50 \& \$x\$ $\pm$ 1"
    assert escape_latex(r"a\b{c}~^") == r"a\textbackslash{}b\{c\}\textasciitilde{}\textasciicircum{}"
    assert escape_latex("α/T → β") == r"$\alpha$/T $\rightarrow$ $\beta$"


def test_markdown_of_a_sheet():
    assert to_markdown(AWKWARD).split("\n") == [
        "## 100 % of R_50 & α/T → {small}",
        "",
        "| Run               |        Top-1 (%) |   Difference |   Difference |",
        "|:------------------|-----------------:|-------------:|-------------:|",
        r"| a_b^c\~d          | **91.00 ± 1.00** |        -0.50 |            – |",
        r"| \\x{y}\$z\$\<\|># |            90.00 |        +0.50 |     **0.00** |",
        "",
        "Measured on a 4 GHz CPU & 1 GPU, 50 % idle.",
        "",
    ]


def test_latex_of_a_sheet():
    assert to_latex(AWKWARD, "tab:awkward").split("\n") == [
        r"\begin{table}[htbp]",
        r"\centering",
        r"\caption{100 \% of R\_50 \& $\alpha$/T $\rightarrow$ \{small\}. "
        r"Measured on a 4 GHz CPU \& 1 GPU, 50 \% idle.}",
        r"\label{tab:awkward}",
        r"\fittoline{%",
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r"Run & Top-1 (\%) & Difference & Difference \\",
        r"\midrule",
        r"a\_b\textasciicircum{}c\textasciitilde{}d & \textbf{91.00 $\pm$ 1.00} & $-$0.50 & -- \\",
        r"\textbackslash{}x\{y\}\$z\$$<$$|$$>$\# & 90.00 & $+$0.50 & \textbf{0.00} \\",
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
        "",
    ]


def test_a_sheet_without_rows_is_still_a_table():
    empty = Sheet("empty", "Empty", ("Run", "Top-1 (%)"), (False, True), ())
    assert "| Run   | Top-1 (%)   |" in to_markdown(empty)
    assert r"Run & Top-1 (\%) \\" in to_latex(empty, "tab:empty")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed (texlive-latex-recommended)")
@pytest.mark.parametrize(("packages", "fits"), [("booktabs", False), ("booktabs,graphicx", True)])
def test_pdflatex_compiles_a_table_with_booktabs_and_graphicx_shrinks_a_wide_one(tmp_path, packages, fits):
    text = NASTY.replace("√", "")
    empty = Sheet("empty", "Empty", ("Run", "Top-1 (%)"), (False, True), ())
    nasty = Sheet("nasty", text, ("Run",), (False,), ((Cell(text, bold=True),),))
    wide = Sheet("wide", "Wide", ("Run", *["Published Top-1 (%)"] * 9), (False,) * 10, ((Cell("small"),) * 10,))
    sheets = (AWKWARD, empty, nasty, wide)
    tables = "\n".join([LATEX_HEAD, *(to_latex(sheet, f"tab:{sheet.name}") for sheet in sheets)])
    (tmp_path / "tables.tex").write_text(tables, encoding="utf-8")
    lines = [r"\documentclass{article}", rf"\usepackage{{{packages}}}", r"\begin{document}", r"\input{tables}"]
    (tmp_path / "paper.tex").write_text("\n".join([*lines, r"\end{document}"]))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 1000
    assert not re.search(r"^!|Missing character", done.stdout, re.MULTILINE), done.stdout
    assert ("Overfull" not in done.stdout) == fits
