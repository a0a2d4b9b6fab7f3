"""The ledger of published numbers is read exactly, or refused in one line."""

import os
import re
from decimal import Decimal
from pathlib import Path

import pytest

from distillery.errors import UserError
from distillery.experiment.schema.columns import COLUMNS
from distillery.reporting.published import HEADER, Published, load_published

ROOT = Path(__file__).parents[2]
HEAD = ",".join(HEADER) + "\n"


@pytest.fixture
def ledger(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "toy.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


def test_a_row_keeps_the_digits_that_were_printed(ledger):
    path = ledger(HEAD + 'small,top1,76.10,0.20,5,best,"Author 2020, Table 3"\n')
    (number,) = load_published(path)
    assert number == Published("small", "top1", Decimal("76.1"), Decimal("0.2"), 5, "best", "Author 2020, Table 3", 2)
    assert str(number.value) == "76.10"
    assert str(number.std) == "0.20"


def test_what_is_unknown_is_left_empty(ledger):
    (number,) = load_published(ledger(HEAD + "small,nll,0.3,,,,here\n"))
    assert (number.std, number.n, number.selection) == (None, None, None)


def test_columns_may_stand_in_any_order_with_spaces_and_empty_lines(ledger):
    path = ledger("source,run,value,metric,n,std,selection\n\n here , small , 76.1 ,top1,,,\n,,,,,,\n")
    (number,) = load_published(path)
    assert (number.run, number.source, number.row) == ("small", "here", 3)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_files_of_spreadsheets_are_read(ledger, encoding, end):
    path = ledger((HEAD + "small,top1,76.1,,,,Müller\n").replace("\n", end), encoding)
    assert load_published(path)[0].source == "Müller"


def test_errors_number_rows_by_line_even_after_a_multi_line_source(ledger):
    path = ledger(HEAD + 'a,top1,1,,,,"two\nlines"\nb,top1,2,,,,here\n')
    assert [number.row for number in load_published(path)] == [2, 4]


def test_a_number_may_belong_to_one_table(ledger):
    head = HEAD.replace("source", "source,table")
    rows = "small,top1,76.1,,,,here,\nsmall,top1,76.3,,,,there,methods\n"
    assert [number.table for number in load_published(ledger(head + rows))] == ["", "methods"]
    with pytest.raises(UserError, match="row 3: small has its top1 in row 2 already"):
        load_published(ledger(head + rows.replace("here,\n", "here,methods\n")))


def test_a_gain_stands_beside_the_top1_of_its_table(ledger):
    head = HEAD.replace("source", "source,table")
    rows = (
        "small,gain_over_published,0.6,,,,here,methods\nsmall,top1,76.10,,,best,here,methods\nsmall,top1,80,,,,there,\n"
    )
    gain = load_published(ledger(head + rows))[0]
    assert (str(gain.best_before), gain.selection, gain.beside.row) == ("75.50", "best", 3)
    line = (
        "row 2, metric: small has a gain_over_published without the top1 that it led to; "
        "add a row with its top1 and table 'methods'"
    )
    with pytest.raises(UserError, match=re.escape(line)):
        load_published(ledger(head + rows.replace("best,here,methods", "best,here,other")))
    with pytest.raises(UserError, match=r"row 2, metric: small has a gain_over_published .* its top1 and no table$"):
        load_published(ledger(HEAD + "small,gain_over_published,-0.6,,,,here\nsmall,top5,76.10,,,,here\n"))


def test_a_missing_ledger_and_one_without_rows_are_empty(ledger, tmp_path):
    assert load_published(tmp_path / "none.csv") == []
    assert load_published(ledger(HEAD)) == []


@pytest.mark.parametrize(
    ("printed", "rounding"), [("76", 0.5), ("76.1", 0.05), ("76.10", 0.005), ("25.6e6", 5e4), ("1E2", 50)]
)
def test_rounding_is_half_a_unit_of_the_last_digit(printed, rounding):
    number = Published("small", "nll", Decimal(printed), None, None, None, "here", 2)
    assert number.rounding == pytest.approx(rounding, rel=1e-12)


@pytest.mark.parametrize(("metric", "other"), [("top1", "error1"), ("error5", "top5")])
def test_an_accuracy_is_an_error_with_the_same_digits(metric, other):
    number = Published("small", metric, Decimal("6.90"), Decimal("0.2"), 5, "best", "here", 2)
    turned = number.in_column(other)
    assert str(turned.value) == "93.10"
    assert (turned.metric, turned.std, turned.rounding) == (other, number.std, number.rounding)
    assert turned.in_column(metric) == number
    assert number.in_column(metric) is number


FAULTS = {
    "small,top1,abc,,,,here": r"row 2, value: 'abc' is not valid; expected a number from 0 to 100",
    "small,top1,,,,,here": r"row 2, value: '' is not valid",
    "small,top1,nan,,,,here": r"row 2, value: 'nan' is not valid",
    "small,top1,100.1,,,,here": r"row 2, value: '100.1' is not valid; expected a number from 0 to 100",
    "small,ece,101,,,,here": r"row 2, value: '101' is not valid; expected a number from 0 to 100",
    "small,gain_over_published,-101,,,,here": r"row 2, value: '-101' is not valid; expected a number from -100 to 100",
    "small,gain_over_published,0.6,,,best,here": r"row 2, selection: 'best' is not valid; leave it empty; a gain_over_",
    "small,gain_over_published,0.6,0.1,5,,here": r"row 2, std: '0.1' is not valid; leave it empty",
    "small,nll,-1,,,,here": r"row 2, value: '-1' is not valid; expected a number not below 0",
    "small,params,1_000,,,,here": r"row 2, value: '1_000' is not valid",
    'small,params,"25,557,032",,,,here': r"row 2, value: '25,557,032' is not valid",
    "small,top1,76.1,x,5,,here": r"row 2, std: 'x' is not valid; expected a standard deviation",
    "small,top1,76.1,-1,5,,here": r"row 2, std: '-1' is not valid",
    "small,top1,76.1,0.2,,,here": r"row 2, std: '0.2' is not valid; a spread needs the number of runs .* found ''",
    "small,top1,76.1,0.2,1,,here": r"row 2, std: '0.2' is not valid; .* found '1'",
    "small,top1,76.1,,0,,here": r"row 2, n: '0' is not valid",
    "small,top1,76.1,,2.5,,here": r"row 2, n: '2.5' is not valid",
    "small,top1,76.1,,,median,here": r"row 2, selection: 'median' is not valid; expected last or best",
    "small,top1,76.1,,,,": r"row 2, source: '' is not valid; say where the number is printed",
    ",top1,76.1,,,,here": r"row 2, run: '' is not valid; name the run of the experiment",
    "small,top-1,76.1,,,,here": r"row 2, metric: 'top-1' is not valid; did you mean 'top1'",
    "small,top1,76.1": r"row 2: 3 cells instead of 7",
    "small,top1,76.1,,,,A 2020, Table 3": r"row 2: 8 cells instead of 7; quote a cell that has a comma",
    'small,top1,76.1,,,,"open': r"row 2: not valid CSV",
    "small,top1,76.1,,,,here\nsmall,top1,76.2,,,,there": r"row 3: small has its top1 in row 2 already",
    "small,top1,76.1,,,,here\nsmall,error1,23.9,,,,there": r"row 3: small has its error1 in row 2 already",
}


@pytest.mark.parametrize("rows", FAULTS)
def test_a_fault_is_one_line_that_says_what_would_be_right(ledger, rows):
    path = ledger(HEAD + rows + "\n")
    with pytest.raises(UserError) as caught:
        load_published(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    assert re.search(FAULTS[rows], line), line


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("", "row 1: column 'run' is missing; the header is run,metric,value,std,n,selection,source"),
        ("run,metric,value,std,n,selection\n", "row 1: column 'source' is missing"),
        ("run,metric,value,std,n,select,source\n", "row 1: unknown column 'select'; did you mean 'selection'?"),
        ("run,run,metric,value,std,n,selection,source\n", "row 1: column 'run' occurs twice"),
    ],
)
def test_a_wrong_header_is_named(ledger, header, line):
    with pytest.raises(UserError, match=re.escape(line)):
        load_published(ledger(header))


def test_a_file_that_cannot_be_read_is_one_line(ledger, tmp_path):
    with pytest.raises(UserError, match=r"toy.csv: cannot be read: it is not UTF-8 text"):
        load_published(ledger("ü", "latin-1"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=r"folder.csv: cannot be read: Is a directory"):
        load_published(tmp_path / "folder.csv")


def test_the_readme_names_every_column_and_metric_and_its_example_is_valid(ledger):
    text = (ROOT / "config" / "published" / "README.md").read_text()
    for word in (*HEADER, *(name for name, column in COLUMNS.items() if not (column.timed or column.paired))):
        assert f"`{word}`" in text
    example = text.partition("```csv\n")[2].partition("```")[0]
    assert len(load_published(ledger(example))) == 2


@pytest.mark.parametrize("path", sorted((ROOT / "config" / "published").glob("*.csv")), ids=lambda path: path.stem)
def test_the_ledgers_of_this_repository_are_valid(path):
    load_published(path)


@pytest.mark.parametrize("value", ["1e400", "1e-400", "inf", "nan", "1_0", "0x10", "9" * 5000, "true", "1,5"])
def test_a_number_that_no_table_prints_is_refused(ledger, value):
    with pytest.raises(UserError, match=r"row 2, value: .* is not valid; expected a number|row 2: 8 cells"):
        load_published(ledger(HEAD + f"small,nll,{value},,,,here\n"))


@pytest.mark.parametrize("n", ["0", "-1", "1.5", "9" * 5000, "٣", "true"])
def test_a_number_of_runs_that_none_had_is_refused(ledger, n):
    with pytest.raises(UserError, match=r"row 2, n: .* is not valid; expected the number of runs"):
        load_published(ledger(HEAD + f"small,nll,0.3,,{n},,here\n"))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "toy.csv")
    with pytest.raises(UserError, match="it is not a regular file"):
        load_published(tmp_path / "toy.csv")
