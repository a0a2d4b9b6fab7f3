"""What an experiment file may say: runs, and the tables over them."""

from typing import Literal, Self

from pydantic import Field, model_validator

from distillery.config.schema.block import Block, Name, Seeds
from distillery.config.schema.objective import CrossEntropyOptions, Objective


class Run(Block):
    """One line under `runs:`. Any key of a recipe may stand here too and overrides it."""

    model: str = Field(description="cifar_*, or any timm or torchvision name")
    model_args: dict[str, bool | int | float | str] = Field({})
    recipe: Name | None = Field(None, description="recipes/<recipe>.yaml to train by")
    weights: str | None = Field(None, description="import instead of training: a file, torchvision:TAG or timm:TAG")
    teacher: Name | None = Field(None, description="another run of this experiment; its first seed teaches")
    teacher_norm: Literal["eval", "batch"] | None = Field(
        None,
        description="the teacher's batch norms: running or batch statistics; default batch for overhaul, else eval",
    )
    objective: Objective = Objective(ce=CrossEntropyOptions())
    seeds: Seeds | None = Field(None, description="instead of the experiment's seeds")


Column = Literal[
    "top1", "top5", "error1", "error5", "nll", "ece", "agreement", "params", "macs", "size", "latency", "throughput"
]


class Grid(Block):
    """Runs by two settings, as temperature down and label smoothing across."""

    corner: str = Field("", description="what the settings are, above the first column")
    across: tuple[str, ...] = Field(description="headings of the columns")
    down: dict[str, tuple[Name | None, ...]] = Field(description="heading of a row: its runs, null where there is none")

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        for heading, runs in self.down.items():
            if len(runs) != len(self.across):
                raise ValueError(f"row {heading!r} has {len(runs)} runs for {len(self.across)} columns")
        return self

    def runs(self) -> tuple[str, ...]:
        """Every run in it, once."""
        return tuple(dict.fromkeys(run for row in self.down.values() for run in row if run is not None))


class Table(Block):
    """One table of the page: a row a run and a column a metric, or a grid of runs with the metrics in each cell."""

    title: str | None = None
    rows: tuple[Name, ...] = Field((), description="runs, one a row")
    grid: Grid | None = Field(None, description="instead of rows")
    columns: tuple[Column, ...]

    @model_validator(mode="after")
    def _rows_or_grid(self) -> Self:
        if bool(self.rows) == (self.grid is not None):
            raise ValueError("a table needs either `rows` or a `grid`")
        return self

    def runs(self) -> tuple[str, ...]:
        """The runs it shows."""
        return self.grid.runs() if self.grid is not None else self.rows


class Experiment(Block):
    """One page of tables: a data set, the runs on it, and the tables over them."""

    dataset: Name
    seeds: Seeds = (0,)
    runs: dict[Name, Run]
    tables: dict[Name, Table] = Field({})
