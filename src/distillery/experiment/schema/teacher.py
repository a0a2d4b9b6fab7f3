"""Who teaches a run, and whether its answers are computed at every step or looked up in a bank."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from distillery.experiment.schema.block import Block, Name

# Of several teachers; one that counts for less than rounding errors do teaches nothing.
Weight = Annotated[float, Field(ge=1e-6, le=1e6)]


class TopRows(Block):
    """A row holds the largest logits alone, and what all others come to together."""

    top: Annotated[int, Field(ge=1, le=65_535)] = Field(description="how many logits of a row are kept")


def _rows_class(value: Any) -> str:  # noqa: ANN401
    return "TopRows" if isinstance(value, (Mapping, TopRows)) else "number"


Rows = Annotated[
    Annotated[Literal["float32", "float16"], Tag("number")] | Annotated[TopRows, Tag("TopRows")],
    Discriminator(_rows_class),
]


TeacherMean = Literal["probabilities", "logits"]


class Answers(Block):
    """How a teacher's answers are stored, once, for all runs that see the same crops."""

    numerics = 1

    rows: Rows = "float32"


class TeacherConfig(Block):
    """`teacher:` as a block, or one of several."""

    run: Name = Field(description="another run of this experiment; its first seed teaches")
    answers: Literal["live", "bank"] = Field(
        "live", description="live: computed at every step; bank: looked up, after all were stored once"
    )
    rows: Rows | None = Field(
        None, description="of a bank: float32 (as the live teacher, default), float16, or {top: k} logits"
    )

    weight: Weight = Field(1.0, description="of several, its share in their mean; shares are divided by their sum")

    @model_validator(mode="after")
    def _rows_of_a_bank(self) -> Self:
        if self.rows is not None and self.answers == "live":
            raise ValueError("`rows` says how a bank stores answers; add `answers: bank` or remove it")
        return self

    @property
    def stored(self) -> Answers | None:
        """How its answers are stored; None where it answers live."""
        if self.answers == "live":
            return None
        return Answers() if self.rows is None else Answers(rows=self.rows)


def _teacher_class(value: Any) -> str:  # noqa: ANN401
    return "TeacherConfig" if isinstance(value, (Mapping, TeacherConfig)) else "run"


OneTeacher = Annotated[
    Annotated[Name, Tag("run")] | Annotated[TeacherConfig, Tag("TeacherConfig")], Discriminator(_teacher_class)
]
Several = Annotated[tuple[OneTeacher, ...], Field(min_length=1, max_length=20)]


def _number_of_teachers(value: Any) -> str:  # noqa: ANN401
    return "several" if isinstance(value, (list, tuple)) else _teacher_class(value)


TeacherKey = Annotated[
    Annotated[Name, Tag("run")] | Annotated[TeacherConfig, Tag("TeacherConfig")] | Annotated[Several, Tag("several")],
    Discriminator(_number_of_teachers),
]
