"""What an experiment file may say: runs, and the tables over them."""

import json
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from distillery.experiment.address import parse_address
from distillery.experiment.schema.block import Block, FileName, Name, Neutral, Seeds, apart
from distillery.experiment.schema.columns import COLUMNS
from distillery.experiment.schema.labels import Count, Images, LabelledShare
from distillery.experiment.schema.objective import PLAIN, Objective
from distillery.experiment.schema.teacher import TeacherConfig, TeacherKey, TeacherMean

# What `classes` may say of weights besides a file: lists that timm has, as the run that made them says, no classifier.
WORDNET_LISTS = ("imagenet-1k", "imagenet-12k", "imagenet-21k", "imagenet-21k-miil", "imagenet-22k", "imagenet-22k-ms")
OWN_CLASSES, NO_CLASSES = "names", "none"


def _check_classes(classes: str) -> str:
    known = [*WORDNET_LISTS, OWN_CLASSES, NO_CLASSES]
    if classes not in known and "." not in classes and "/" not in classes:
        raise ValueError(f"expected {', '.join(known)}, or a file with a class a line, as classes.txt")
    return classes


def _check_address(weights: str) -> str:
    parse_address(weights)
    return weights


class RunConfig(Block):
    """One line under `runs:`. Any key of a recipe may stand here too and overrides it."""

    model: str = Field(description="cifar_*, or any timm or torchvision name")
    model_args: dict[str, bool | int | float | str] = Field({})
    recipe: Name | None = Field(None, description="recipes/<recipe>.yaml to train by")
    weights: Annotated[str, Field(min_length=1), AfterValidator(_check_address)] | None = Field(
        None,
        description="alone: import; beside `recipe`: train from these. A file, https://...#sha256=<64 hex digits>, "
        "torchvision:TAG, timm:TAG, run:RUN or run:EXPERIMENT/RUN",
    )
    nest: Annotated[str | None, Neutral(None)] = Field(
        None, description="of a file with several weights, the key of those to take, e.g. model_ema"
    )
    prefix: Annotated[str | None, Neutral(None)] = Field(
        None, description="take the weights of a file whose names begin like this, and leave it away, e.g. model."
    )
    ignore: Annotated[tuple[str, ...], Neutral(())] = Field(
        (), description="names (or patterns with *) of a file's weights to leave out, e.g. criterion.*"
    )
    new_classifier: bool = Field(
        False, description="train from `weights` without their last layer, as for another number of classes"
    )
    classes: Annotated[str | None, Neutral(None), AfterValidator(_check_classes)] = Field(
        None,
        description="which classes `weights` know, if not the data set's: imagenet-1k, imagenet-21k ..., a file with a "
        "class a line, names (as the run that made them says), or none (no classifier)",
    )
    teacher: TeacherKey | None = Field(
        None,
        description="another run of this experiment, whose first seed teaches; or a block that names it as `run`; or a "
        "list of these",
    )
    teacher_mean: Annotated[TeacherMean | None, Neutral(None)] = Field(
        None, description="of several teachers, what is averaged: their probabilities (default) or their logits"
    )
    teacher_norm: Literal["eval", "batch"] | None = Field(
        None,
        description="the teacher's batch norms: running or batch statistics; default batch for overhaul, else eval",
    )
    margin_source: Literal["teacher", "pretrained"] = Field(
        "teacher", description="whose batch norms give margins: the teacher's, or the weights' that it began with"
    )
    objective: Objective = PLAIN
    seeds: Seeds | None = Field(None, description="instead of the experiment's seeds")
    labels: Count | None = Field(
        None, description="so many (0: none), or this share, of the training images have a label"
    )
    images: Images | None = Field(
        None, description="with `labels`: train on all images (default with a teacher) or on the labelled ones alone"
    )
    labelled_share: LabelledShare | None = Field(None, description="labelled images' part of each batch, 0.5")

    @property
    def teachers(self) -> tuple[TeacherConfig, ...]:
        """Who teaches this one, and how."""
        given = self.teacher if isinstance(self.teacher, tuple) else (self.teacher,)
        return tuple(
            TeacherConfig.model_validate({"run": one}) if isinstance(one, str) else one
            for one in given
            if one is not None
        )


if TYPE_CHECKING:
    ColumnName = str
else:
    ColumnName = Literal[tuple(COLUMNS)]


def head_cells(heading: str) -> tuple[str, ...]:
    """The cells of a heading; `Model | Method` has two."""
    return tuple(cell.strip() for cell in heading.split("|"))


def _headings(across: Any) -> Any:  # noqa: ANN401
    """Of headings with what `*` stands for below them, the headings."""
    if not isinstance(across, dict):
        return across
    for heading, word in across.items():
        if not isinstance(word, str):
            raise ValueError(f"{json.dumps(word)} below {heading!r} is no word; put it in quotes")
    return tuple(across)


def _written(row: Any) -> Any:  # noqa: ANN401
    return row


Across = Annotated[
    tuple[str, ...], BeforeValidator(_headings, json_schema_input_type=tuple[str, ...] | dict[str, Name])
]
# Patterns are written out before they come here.
Row = Annotated[
    tuple[Name | None, ...], BeforeValidator(_written, json_schema_input_type=tuple[Name | None, ...] | str)
]


class Grid(Block):
    """Runs by two settings, as temperature down and label smoothing across; `|` splits a heading over columns."""

    corner: str = Field("", description="what the settings are, above the first column")
    across: Across = Field(description="headings of the columns; or each with what `*` is in the patterns of its rows")
    down: dict[str, Row] = Field(description="heading of a row: its runs, null where there is none; or `*-kd` for all")

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        for heading, runs in self.down.items():
            if len(runs) != len(self.across):
                raise ValueError(f"row {heading!r} has {len(runs)} runs for {len(self.across)} columns")
            _check_cells(heading, "corner", self.corner)
        return self

    def runs(self) -> tuple[str, ...]:
        """Every run in it, once."""
        return tuple(dict.fromkeys(run for row in self.down.values() for run in row if run is not None))


def _unlabelled(rows: Any) -> Any:  # noqa: ANN401
    """A plain list of runs is a mapping of runs without labels."""
    if not isinstance(rows, (list, tuple)):
        return rows
    counts = Counter(run for run in rows if isinstance(run, str))
    for run in rows:
        if not isinstance(run, str):
            raise ValueError(f"{json.dumps(run)} is no run; put it in quotes")
        if counts[run] > 1:
            raise ValueError(f"run {run!r} occurs twice")
    return dict.fromkeys(rows, "")


Rows = Annotated[
    dict[Name, str], BeforeValidator(_unlabelled, json_schema_input_type=tuple[Name, ...] | dict[Name, str])
]


# Columns of a laid-out table that are no metrics.
BESIDE = ("label", "run", "teacher", "labels", "n", "selection", "published", "difference", "verdict")


class Latex(Block):
    """How a table is set in LaTeX."""

    columns: tuple[str, ...] = Field(
        default=(),
        description=f"those to print, in order: {', '.join(BESIDE)} or of the table's `columns`; by default all",
    )
    headings: dict[str, str] = Field(default={}, description="of columns, instead of the usual ones")
    siunitx: bool = Field(default=False, description="align numbers at the decimal point by the package siunitx")
    wide: bool = Field(default=False, description="over both columns of a two-column page: table*")


class Table(Block):
    """One table: a row a run and a column a metric, or a grid of runs with the metrics in each cell."""

    title: str | None = None
    heading: str = Field("", description="above the rows' labels; `|` splits it and them over columns")
    rows: Rows = Field({}, description="runs, one a row, or a mapping of runs to their labels")
    grid: Grid | None = Field(None, description="instead of rows")
    columns: Annotated[tuple[ColumnName, ...], Field(min_length=1)]
    baseline: Annotated[Name | None, Neutral(None)] = Field(
        None, description="a run of the experiment, over which the column `gain` is taken, paired by seed"
    )
    figure: Literal["heat_map", "pareto"] | None = Field(
        None, description="draw a grid's first column as a heat map, or accuracy against speed with the Pareto front"
    )

    latex: Annotated[Latex, Neutral({})] = Latex()

    @model_validator(mode="after")
    def _set(self) -> Self:
        if self.grid is not None and (self.latex.columns or self.latex.headings):
            raise ValueError("`latex` cannot choose or name the columns of a grid, which are its own")
        valid = dict.fromkeys((*BESIDE, *self.columns))
        for key, names in (("columns", self.latex.columns), ("headings", self.latex.headings)):
            for name in names:
                if name not in valid:
                    raise ValueError(f"latex.{key}: the table has no column {name!r}; valid: {', '.join(valid)}")
        return self

    @model_validator(mode="after")
    def _drawable(self) -> Self:
        if self.figure == "heat_map" and self.grid is None:
            raise ValueError("a heat map needs a `grid`")
        accuracies, speeds = self.columns_along("accuracy"), self.columns_along("speed")
        if self.figure == "pareto" and (self.grid is not None or len(accuracies) != 1 or not speeds):
            one = " or ".join(name for name, column in COLUMNS.items() if column.axis == "accuracy")
            other = " or ".join(name for name, column in COLUMNS.items() if column.axis == "speed")
            raise ValueError(f"a Pareto front needs `rows`, and the columns {one} and {other}")
        return self

    @model_validator(mode="after")
    def _rows_or_grid(self) -> Self:
        if bool(self.rows) == (self.grid is not None):
            raise ValueError("a table needs either `rows` or a `grid`")
        for label in self.rows.values():
            _check_cells(label, "heading", self.heading)
        return self

    @model_validator(mode="after")
    def _compared(self) -> Self:
        if self.baseline is None and self.paired:
            raise ValueError(f"the column {self.paired[0]} needs a `baseline`, the run that others are compared with")
        if self.baseline is not None and not self.paired:
            one = " or ".join(name for name, column in COLUMNS.items() if column.paired)
            raise ValueError(f"the baseline {self.baseline!r} has no use without the column {one}")
        return self

    @property
    def paired(self) -> list[str]:
        """Its columns, each once, that compare runs with the baseline."""
        return [name for name in dict.fromkeys(self.columns) if COLUMNS[name].paired]

    @property
    def drawn(self) -> bool:
        """Whether there are figures of it."""
        return self.figure is not None or self.baseline is not None

    def columns_along(self, axis: Literal["accuracy", "speed"]) -> list[str]:
        """Its columns, each once, that may be drawn along an axis of a Pareto front."""
        return [name for name in dict.fromkeys(self.columns) if COLUMNS[name].axis == axis]

    def runs(self) -> tuple[str, ...]:
        """The runs it shows."""
        return self.grid.runs() if self.grid is not None else tuple(self.rows)


def _check_cells(text: str, key: str, heading: str) -> None:
    found, expected = len(head_cells(text)), len(head_cells(heading))
    if found != expected:
        raise ValueError(f"{text!r} has {found} cells divided by |, but the {key} {heading!r} has {expected}")


Axis = Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]


class Sweep(Block):
    """Runs that combine settings, as students with methods: each has the keys of its settings, later over earlier."""

    over: Annotated[dict[Name, Axis], Field(min_length=1)] = Field(
        description="settings by name, each with its values: name and keys of a run; runs are named VALUE-VALUE"
    )
    but: dict[Name, dict[str, Any] | None] = Field({}, description="keys of single runs; null leaves one out")


class ExperimentConfig(Block):
    """One experiment: a data set, the runs on it, and the tables over them."""

    dataset: Name
    seeds: Seeds = (0,)
    labels: Count | None = Field(None, description="of runs that are trained and do not say it themselves")
    defaults: dict[str, Any] = Field(
        {}, description="keys of every run but imported `weights`, unless it says otherwise"
    )
    runs: Annotated[dict[Name, RunConfig], AfterValidator(apart)]
    sweep: dict[Name, Sweep] = Field({}, description="further runs: every combination of some settings")
    tables: Annotated[dict[FileName, Table], AfterValidator(apart)] = Field({})
