"""The page of tables: what it says, that it needs nothing else, and that nothing in it is taken for its own markup."""

import csv
import shutil
import subprocess
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from distillery.paths import table_folder
from distillery.reporting.html import Part, to_html
from distillery.reporting.markup import Cell, Sheet
from distillery.reporting.run_notes import RunNote
from distillery.reporting.tables import tabulate_experiment

LEDGER = (
    'small,top1,91.5,,,last,"Author 2020, Table 3"',
    "small-kd,error1,6.90,0.2,5,best,Other 2021",
    'big,top1,95.0,,,,"Author 2020, Table 3"',
)
NASTY = "</td><script>alert(1)</script>\"'&amp;{{ 7 * 7 }}"
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """A page as it is read: its tags balanced, its tables as rows of (text, attributes)."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.tables, self.texts = [], [], [], {}
        self.cell = None
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = ["", attributes]
            self.tables[-1][-1].append(self.cell)
        elif tag == "a" and self.cell:
            self.cell[1]["link"] = attributes["href"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.cell = None

    def handle_data(self, data):
        self.texts[self.open[-1] if self.open else ""] = self.texts.get(self.open[-1] if self.open else "", "") + data
        if self.cell:
            self.cell[0] += data


def tabulated(desk):
    tabulate_experiment(desk.experiment, desk.results, desk.ledger)
    folder = table_folder(desk.results)
    return folder, Page((folder / "toy.html").read_text())


def columns(table):
    heads = [text for text, _ in table[0]]
    return {row[0][0]: dict(zip(heads, row, strict=True)) for row in table[1:]}


@pytest.fixture
def judged(desk):
    desk.write_results()
    desk.write_ledger(*LEDGER)
    return desk


def test_the_page_has_the_texts_and_to_the_last_digit_the_numbers_of_the_other_formats(judged):
    folder, page = tabulated(judged)
    (table,) = page.tables
    markdown = [line for line in (folder / "toy.md").read_text().splitlines() if line.startswith("|")]
    plain = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in markdown if "---" not in line]
    assert [[text for text, _ in row] for row in table] == plain
    headings = {"top1": "Top-1 (%)", "nll": "NLL", "agreement": "Agreement (%)", "params": "Params", "size": "Size"}
    shown = columns(table)
    with (folder / "toy.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            value = shown[row["run"]][headings[row["metric"]]][1].get("data-value", "")
            assert value == row["mean"] or float(value) == float(row["mean"])


def test_a_cell_says_its_seeds_and_a_verdict_its_test_and_source(judged):
    _, page = tabulated(judged)
    small, kd = (columns(page.tables[0])[run] for run in ("small", "small-kd"))
    assert small["Top-1 (%)"][1]["title"] == "seed 0: 90.00, seed 1: 91.00, seed 2: 92.00"
    text, attributes = small["Verdict"]
    assert text == "within noise"
    assert attributes["class"] == "within-noise"
    assert "(one-sided t-test at 5 %)" in attributes["title"]
    assert "source: Author 2020, Table 3, last epoch" in attributes["title"]
    assert kd["Verdict"][1]["title"] == "not comparable\nsource: Other 2021, n = 5, best epoch"


def test_a_gain_that_is_significant_is_coloured_and_says_its_test(desk):
    text = desk.text.replace("agreement, params", "gain, params").replace("[big, small, small-kd]", "[small, small-kd]")
    desk.write_experiment(text.replace("      columns: [top1, nll", "      baseline: small\n      columns: [top1, nll"))
    desk.write_results()
    for seed, top1 in enumerate((93.0, 94.1, 95.0)):
        desk.write_metrics("small-kd", seed, top1=top1)
    _, page = tabulated(desk)
    gain = next(cell for head, cell in columns(page.tables[0])["small-kd"].items() if head.startswith("Gain"))
    assert gain[1]["class"] == "number better"
    assert gain[1]["title"].startswith("over small: paired t-test over 3 seeds, p ")


def test_a_cell_leads_to_what_stands_behind_its_run(judged):
    epochs = [{"epoch": epoch, "train_loss": 1.0, "val_top1": 80.0 + epoch} for epoch in (1, 2, 4)]
    for seed in (0, 1, 2):
        judged.write_history("small-kd", seed, epochs)
    folder, page = tabulated(judged)
    pages = {folder / "toy.html": page, folder / "toy" / "methods.html": None, folder / "toy" / "speed.html": None}
    for path, read in pages.items():
        read = read or Page(path.read_text())
        runs = {"big", "small"} if path.stem == "speed" else {"big", "small", "small-kd"}
        links = {cell[1]["link"] for table in read.tables for row in table for cell in row if "link" in cell[1]}
        assert links == {f"#run-{run}" for run in runs}
        assert {attributes["id"] for tag, attributes in read.tags if tag == "details"} == {f"run-{run}" for run in runs}
        files = [attributes["href"] for tag, attributes in read.tags if tag == "a" and attributes["href"].endswith("/")]
        folders = {(path.parent / unquote(link)).resolve() for link in files}
        assert {each.name for each in folders if each.is_dir()} >= runs
    (curve,) = [attributes["points"] for tag, attributes in page.tags if tag == "polyline"][:1]
    assert curve == "0.0,110.0 106.7,73.3 320.0,0.0"
    said = (folder / "toy.html").read_text()
    assert "teacher: none -&gt; big" in said
    assert "Against the row above, small:" in said
    digest = judged.experiment.spec("small-kd", 2).digest
    assert f"seed 2: {digest}" in said
    assert "commit 1a2b3c4, distillery 0.1.0, torch 2.9.0" in said


def test_a_table_with_times_stands_on_its_own_page(judged):
    _, page = tabulated(judged)
    assert ("a", {"href": "toy/speed.html"}) in page.tags
    assert "Imaginary" not in "".join(page.texts.values())


def test_the_page_needs_nothing_else(judged):
    folder, page = tabulated(judged)
    assert not [tag for tag, attributes in page.tags if "src" in attributes or tag in ("link", "img", "iframe")]
    (policy,) = [attributes["content"] for _, attributes in page.tags if attributes.get("http-equiv")]
    assert policy.startswith("default-src 'none';")
    text = (folder / "toy.html").read_text()
    assert "://" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text


def test_text_from_outside_stays_text(desk):
    sheet = Sheet("t", NASTY, (NASTY,), (False,), ((Cell(NASTY, True, 1.0, NASTY, "", NASTY),),), (NASTY,))
    note = RunNote("plain", ((NASTY, NASTY),), NASTY, (NASTY,), None)
    page = Page(to_html(NASTY, NASTY, [Part("t", NASTY, sheet, NASTY)], [note], NASTY, "../"))
    assert [tag for tag, _ in page.tags].count("script") == 1
    ((head,), (cell,)) = page.tables[0]
    assert head[0] == cell[0] == cell[1]["title"] == page.texts["dt"].removesuffix("Files") == NASTY
    assert page.texts["pre"] == NASTY * 2
    assert unquote(cell[1]["link"]) == f"../{NASTY}/{NASTY}/"
    assert cell[1]["link"].count("/") == 3
    assert page.texts["title"] == page.texts["h1"] == NASTY


def test_latex_to_copy_is_the_file_of_the_table(judged):
    folder, page = tabulated(judged)
    assert page.texts["pre"].startswith((folder / "toy" / "methods.tex").read_text())


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("chromium") is None, reason="chromium is not installed, which opens the page as a user"
)
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_sorts_copies_and_opens_a_run_and_scrolls_the_table_alone(judged, tmp_path, width):
    folder, _ = tabulated(judged)
    script = """
      const found = [], rows = () => [...document.querySelectorAll("tbody tr")];
      const order = () => rows().map((row) => row.cells[0].textContent).join();
      const heads = [...document.querySelectorAll("th button")];
      for (const name of ["Top-1 (%)", "Top-1 (%)", "Top-1 (%)", "Agreement (%)", "Run"]) {
        heads.find((each) => each.textContent === name).click();
        found.push(order());
      }
      let copied = "";
      Object.defineProperty(navigator, "clipboard", { value: { writeText: async (text) => { copied = text; } } });
      document.querySelector(".copy").click();
      document.querySelector('a[href="#run-small-kd"]').click();
      setTimeout(() => {
        found.push(document.documentElement.scrollWidth <= innerWidth, copied.includes("tab:toy:methods"));
        found.push([...document.querySelectorAll("details[open]")].map((each) => each.id).join());
        document.documentElement.append(Object.assign(document.createElement("output"), {
          textContent: found.join(" ") }));
      }, 100);
    """
    path = tmp_path / "clicked.html"
    path.write_text((folder / "toy.html").read_text().replace("</body>", f"<script>{script}</script></body>"))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--window-size={width},800", "--virtual-time-budget=3000", "--dump-dom", path.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    orders = shown.rpartition("<output>")[2].partition("</output>")[0].split()
    assert orders == [
        "big,small-kd,small",
        "small,small-kd,big",
        "big,small,small-kd",
        "small-kd,big,small",
        "big,small,small-kd",
        "true",
        "true",
        "run-small-kd",
    ]
