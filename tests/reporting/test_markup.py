"""Any text survives Markdown and LaTeX; what pdflatex makes of it is looked at for real where it is installed."""

import re
import shutil
import string
import subprocess

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from distillery.experiment.schema.experiment import Latex
from distillery.reporting.markup import (
    LATEX_HEAD,
    Cell,
    Sheet,
    escape_latex,
    escape_markdown,
    latex_head,
    to_latex,
    to_markdown,
)

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
        r"\smallskip",
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


PAPER = Sheet(
    "paper",
    "A paper's table",
    ("Run", "Top-1 (%)", "Images/s", "n", "Selection", "Verdict"),
    (False, True, True, True, False, False),
    (
        (Cell("a_b"), Cell("98.61"), Cell("9,493"), Cell("5"), Cell("last epoch"), Cell("–")),
        (
            Cell("kd"),
            Cell("8.11 ± 10.64", bold=True),
            Cell("not run"),
            Cell("5"),
            Cell("last epoch"),
            Cell("reproduced"),
        ),
    ),
    keys=("run", "top1", "throughput", "n", "selection", "verdict"),
)


def test_what_all_rows_share_stands_in_the_caption():
    latex = to_latex(PAPER, "tab:paper")
    assert r"\caption{A paper's table. n = 5; Selection: last epoch.}" in latex
    assert r"Run & Top-1 (\%) & Images/s & Verdict \\" in latex
    latex = to_latex(PAPER, "tab:paper", Latex(columns=("n", "run")))
    assert r"\caption{A paper's table. Selection: last epoch.}" in latex
    assert r"n & Run \\" in latex


def test_numbers_are_aligned_by_siunitx_and_columns_are_chosen_and_named():
    setting = Latex(columns=("top1", "throughput", "run"), headings={"top1": "Acc. %"}, siunitx=True, wide=True)
    lines = to_latex(PAPER, "tab:paper", setting).split("\n")
    assert lines[0] == r"\begin{table*}[htbp]"
    assert "S[table-format=2.2(4), " in lines[6]
    assert "S[table-format=4.0, " in lines[6]
    assert lines[8] == r"{Acc. \%} & {Images/s} & Run \\"
    assert lines[10:12] == [
        r"98.61 & 9493 & a\_b \\",
        r"\bfseries 8.11 \pm 10.64 & {not run} & kd \\",
    ]
    assert r"\usepackage{siunitx}" in latex_head(["siunitx"])


def compile_paper(folder, options, packages, tables):
    """Compile a paper with tables by pdflatex, and return what it said."""
    (folder / "tables.tex").write_text(tables, encoding="utf-8")
    lines = [rf"\documentclass[{options}]{{article}}", rf"\usepackage{{{packages}}}"]
    lines += [r"\begin{document}", r"\input{tables}"]
    (folder / "paper.tex").write_text("\n".join([*lines, r"\end{document}"]))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert (folder / "paper.pdf").stat().st_size > 1000
    assert not re.search(r"^!|Missing character|multiply defined", done.stdout, re.MULTILINE), done.stdout
    return done.stdout


def has_package(name):
    found = shutil.which("kpsewhich")
    return found is not None and not subprocess.run([found, f"{name}.sty"], capture_output=True).returncode


@pytest.mark.skipif(not has_package("siunitx"), reason="siunitx is not installed (texlive-science)")
@pytest.mark.parametrize("options", ["a4paper", "twocolumn"])
def test_pdflatex_compiles_a_table_of_siunitx_in_one_and_two_columns(tmp_path, options):
    settings = [Latex(siunitx=True, wide=wide) for wide in (False, True)]
    tables = [to_latex(PAPER, f"tab:{place}", setting) for place, setting in enumerate(settings)]
    said = compile_paper(tmp_path, options, "booktabs,graphicx,siunitx", "\n".join([latex_head(["siunitx"]), *tables]))
    assert "Overfull" not in said


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed (texlive-latex-recommended)")
@pytest.mark.parametrize(("packages", "fits"), [("booktabs", False), ("booktabs,graphicx", True)])
def test_pdflatex_compiles_a_table_with_booktabs_and_graphicx_shrinks_a_wide_one(tmp_path, packages, fits):
    text = NASTY.replace("√", "")
    empty = Sheet("empty", "Empty", ("Run", "Top-1 (%)"), (False, True), ())
    nasty = Sheet("nasty", text, ("Run",), (False,), ((Cell(text, bold=True),),))
    wide = Sheet("wide", "Wide", ("Run", *["Published Top-1 (%)"] * 9), (False,) * 10, ((Cell("small"),) * 10,))
    sheets = (AWKWARD, empty, nasty, wide)
    tables = "\n".join([LATEX_HEAD, *(to_latex(sheet, f"tab:{sheet.name}") for sheet in sheets)])
    said = compile_paper(tmp_path, "a4paper", packages, tables)
    assert ("Overfull" not in said) == fits
