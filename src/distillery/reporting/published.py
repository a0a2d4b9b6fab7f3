"""The ledger of published numbers, config/published/<experiment>.csv; its README says how to write it."""

import csv
import io
import math
import re
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Literal, get_args

from distillery.errors import UserError
from distillery.experiment.reading import nearest
from distillery.experiment.schema.columns import COLUMNS
from distillery.paths import regular

HEADER = ("run", "metric", "value", "std", "n", "selection", "source")
OPTIONAL = ("table",)
Selection = Literal["last", "best"]


@dataclass(frozen=True)
class Published:
    """One published number, with the digits it was printed with.

    ``std`` is a sample standard deviation over ``n`` runs; ``n`` and ``selection`` are None where the source is silent.
    ``row`` is the line of the ledger, for error messages. ``table`` is the only table that shows it, if not all do.
    A gain over published numbers knows the top-1 ``beside`` it, and has its spread and selection.
    """

    run: str
    metric: str
    value: Decimal
    std: Decimal | None
    n: int | None
    selection: Selection | None
    source: str
    row: int
    table: str = ""
    beside: "Published | None" = None

    @property
    def best_before(self) -> Decimal:
        """The best top-1 (%) that was published for the network before, for a gain over it."""
        assert self.beside is not None
        return self.beside.value - self.value

    @property
    def rounding(self) -> float:
        """Half a unit of the last printed digit: how far the true number may lie from the printed one."""
        exponent = self.value.as_tuple().exponent
        assert isinstance(exponent, int)
        return float(Decimal((0, (5,), exponent - 1)))

    def in_column(self, metric: str) -> "Published":
        """The same number as another column prints it: an accuracy as an error or the reverse, all digits kept."""
        if metric == self.metric:
            return self
        assert COLUMNS[self.metric].complement == metric
        return replace(self, metric=metric, value=100 - self.value)


def load_published(path: Path) -> list[Published]:
    """Read a ledger; one that does not exist is empty.

    Raises:
        UserError: a cell is wrong; the line names file, row, column, value and what would be right.
    """
    try:
        if not path.exists():
            return []
        text = regular(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{path}: cannot be read: {reason}") from None
    found: list[Published] = []
    seen: dict[tuple[str, str, str], int] = {}
    for row, cells in _rows(path, text):
        number = _parse(path, row, cells)
        key = number.table, number.run, min(number.metric, COLUMNS[number.metric].complement or number.metric)
        if key in seen:
            raise UserError(f"{path}: row {row}: {number.run} has its {number.metric} in row {seen[key]} already")
        seen[key] = row
        found.append(number)
    return [_with_neighbour(path, number, found) for number in found]


def _with_neighbour(path: Path, number: Published, numbers: list[Published]) -> Published:
    """Give a gain the top-1 of its run and table, without which it says nothing of what was best before."""
    wanted = COLUMNS[number.metric].beside
    if wanted is None:
        return number
    for other in numbers:
        if (other.run, other.table) == (number.run, number.table) and wanted in (
            other.metric,
            COLUMNS[other.metric].complement,
        ):
            beside = other.in_column(wanted)
            return replace(number, std=beside.std, n=beside.n, selection=beside.selection, beside=beside)
    table = f"table {number.table!r}" if number.table else "no table"
    raise UserError(
        f"{path}: row {number.row}, metric: {number.run} has a {number.metric} without the {wanted} that it led to; "
        f"add a row with its {wanted} and {table}"
    )


def _rows(path: Path, text: str) -> list[tuple[int, dict[str, str]]]:
    """The filled rows of a CSV text by column, each with the number of its line; the header is row 1."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(path, header)
        end = reader.line_num
        for cells in reader:
            start, end = end + 1, reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise UserError(
                    f"{path}: row {start}: {len(cells)} cells instead of {len(header)}; quote a cell that has a comma"
                )
            rows.append((start, {name: cell.strip() for name, cell in zip(header, cells, strict=True)}))
    except csv.Error as error:
        raise UserError(f"{path}: row {reader.line_num}: not valid CSV: {error}") from None
    return rows


def _check_header(path: Path, header: list[str]) -> None:
    for name in header:
        if name not in HEADER + OPTIONAL:
            raise UserError(f"{path}: row 1: unknown column {name!r}; {nearest(name, [*HEADER, *OPTIONAL])}")
    for name in (*HEADER, *(name for name in OPTIONAL if name in header)):
        if header.count(name) != 1:
            found = "is missing" if name not in header else "occurs twice"
            raise UserError(f"{path}: row 1: column {name!r} {found}; the header is {','.join(HEADER)}")


def _parse(path: Path, row: int, cells: dict[str, str]) -> Published:
    def fault(column: str, reason: str) -> UserError:
        return UserError(f"{path}: row {row}, {column}: {cells[column]!r} is not valid; {reason}")

    metric = cells["metric"]
    printable = [name for name, column in COLUMNS.items() if not column.paired]
    if metric not in printable:
        raise fault("metric", nearest(metric, printable))
    for column, advice in (("run", "name the run of the experiment"), ("source", "say where the number is printed")):
        if not cells[column]:
            raise fault(column, advice)
    value = _decimal(cells["value"])
    least, most = COLUMNS[metric].bounds
    if value is None or not least <= value <= most:
        span = f"from {least:g} to {most:g}" if math.isfinite(most) else f"not below {least:g}"
        raise fault("value", f"expected a number {span}, with the digits it was printed with, e.g. 76.10")
    for column in ("std", "n", "selection"):
        if COLUMNS[metric].beside and cells[column]:
            raise fault(column, f"leave it empty; a {metric} has that of the {COLUMNS[metric].beside} beside it")
    std, n = None, None
    if cells["n"]:
        if not re.fullmatch(r"[1-9][0-9]{0,8}", cells["n"]):
            raise fault("n", "expected the number of runs behind the value, 1 or more, or nothing if it is unknown")
        n = int(cells["n"])
    if cells["std"]:
        std = _decimal(cells["std"])
        if std is None or std < 0:
            raise fault("std", "expected a standard deviation, 0 or more, or nothing if it is unknown")
        if n is None or n < 2:
            raise fault("std", f"a spread needs the number of runs behind it, 2 or more, in n; found {cells['n']!r}")
    selection: Selection | None = next((rule for rule in get_args(Selection) if cells["selection"] == rule), None)
    if selection is None and cells["selection"]:
        raise fault("selection", "expected last or best (epoch), or nothing if the source does not say")
    return Published(cells["run"], metric, value, std, n, selection, cells["source"], row, cells.get("table", ""))


def _decimal(text: str) -> Decimal | None:
    """A number with its digits; None if it is none. What Python alone reads, such as 1_000 or 1e400, is none."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    printed = (
        number.is_finite() and text.isascii() and "_" not in text and len(text) <= 40 and -20 <= number.adjusted() <= 20
    )
    return number if printed else None
