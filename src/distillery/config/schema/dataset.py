"""What a line of datasets.yaml may say."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from distillery.config.schema.block import Block


class Generated(Block):
    """Images made up for a rehearsal: noise in a colour of each class."""

    classes: PositiveInt
    images: PositiveInt = Field(description="for training; half as many are for validation")
    size: PositiveInt = Field(description="height in pixels")


class Dataset(Block):
    """One line of datasets.yaml: where the raw images lie and how they become Arrow shards."""

    path: str = Field(description="class-folder tree (train/<class>/*, val/<class>/*) or a tar of one")
    bundled: Literal["digits"] | None = Field(
        None, description="write these embedded images to `path` when it is absent"
    )
    generated: Generated | None = Field(None, description="write made-up images to `path`, as rehearsals do")
    val_folder: str | None = Field(None, description="name of the validation folder; found by itself when it is usual")
    holdout: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="share of each class's training images to choose epochs by, instead of the validation images"
    )
    on_corrupt: Literal["stop", "skip"] = Field("stop", description="what to do about images that cannot be decoded")
