"""What a line of datasets.yaml may say."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from distillery.experiment.schema.block import Block, Count, Neutral, Pixels

# Each layout is a file of data/layouts/, which is not imported here: only preparing needs it.
LAYOUTS = sorted(
    path.stem.replace("_", "-") for path in (Path(__file__).parents[2] / "data" / "layouts").glob("[!_]*.py")
)

if TYPE_CHECKING:
    Layout = str
else:
    Layout = Literal[tuple(LAYOUTS)]

# What `path` begins with that names a data set of the `datasets` library.
HUB_PREFIX = "hub:"


# With one class there is nothing to tell apart, and any network is right.
Classes = Annotated[int, Field(ge=2, le=10**6)]


class Download(Block):
    """Where an official archive is fetched from when it is absent."""

    url: str = Field(pattern=r"^https?://")
    checksum: Annotated[str, Field(pattern=r"^(md5:[0-9a-f]{32}|sha1:[0-9a-f]{40}|sha256:[0-9a-f]{64})$")]
    size: Annotated[int, Field(ge=1, le=2**50)] | None = Field(None, description="its bytes; more are not taken")


class Generated(Block):
    """Images made up for a rehearsal: noise in a colour of each class."""

    classes: Count
    images: Count = Field(description="for training; half as many are for validation")
    size: Pixels = Field(description="height in pixels")


class Part(Block):
    """A small part of a data set, to try things on."""

    classes: Classes = Field(description="so many of its classes, the first ones")
    images: Count = Field(description="of each of them so many training images, the first ones by name")


class Dataset(Block):
    """One line of datasets.yaml: where the raw images lie and how they become Arrow shards."""

    path: str = Field(
        min_length=1,
        description="folder or archive (tar, zip) with the layout's images, or `hub:NAME[:CONFIG][@REVISION]` for the "
        "datasets library",
    )
    layout: Layout = Field(
        "folders",
        description="folders: train/<class>/* and val/<class>/*; the others: as that data set is published, or folders",
    )
    download: Download | None = Field(None, description="official archive, fetched into the folder `path`")
    bundled: Literal["digits"] | None = Field(
        None, description="write these embedded images to `path` when it is absent"
    )
    generated: Generated | None = Field(None, description="write made-up images to `path`, as rehearsals do")
    classes: Classes | None = Field(None, description="how many classes there must be")
    images: dict[Literal["train", "val"], Count] = Field({}, description="how many images there must be")
    val_folder: str | None = Field(
        None, description="name of the validation folder, or the hub's split; found by itself when it is usual"
    )
    split: Annotated[Literal["evaluation"] | None, Neutral(None)] = Field(
        None, description="evaluation: there are validation images only, to measure imported networks on"
    )
    part: Annotated[Part | None, Neutral(None)] = Field(
        None, description="the first classes alone, and of each the first training images"
    )
    holdout: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="share of each class's training images to choose epochs by, instead of the validation images"
    )
    unlabelled: Annotated[str | None, Field(min_length=1), Neutral(None)] = Field(
        None,
        description="further training images without labels: a folder, an archive, or a list (.txt, .csv) of paths; in "
        "`path`, or anywhere",
    )
    label: str | None = Field(None, description="the hub's column of labels; found by itself when there is one")
    embed: bool = Field(True, description="false: leave the images where they are and keep paths and checksums only")
    orientation: Annotated[Literal["stored", "exif"], Neutral("stored")] = Field(
        "stored", description="exif: turn images as their metadata ask, and store these as PNGs"
    )
    on_corrupt: Literal["stop", "skip"] = Field("stop", description="what to do about images that cannot be decoded")

    @model_validator(mode="after")
    def _of_the_hub(self) -> Self:
        if self.path.startswith(HUB_PREFIX) and self.path[len(HUB_PREFIX) :].lstrip()[:1] in ("", ":", "@"):
            raise ValueError("`hub:` must be followed by the name of a data set, as hub:cifar10")
        if self.label is not None and not self.path.startswith(HUB_PREFIX):
            raise ValueError("`label` names a column of the hub; remove it, or let `path` begin with `hub:`")
        return self

    @model_validator(mode="after")
    def _evaluation_alone(self) -> Self:
        if self.split is not None and self.layout not in ("folders", "lists", "classes"):
            raise ValueError("`split: evaluation` goes with the layouts folders, lists and classes, and with the hub")
        if self.split is not None and self.holdout is not None:
            raise ValueError("`split: evaluation` leaves no training images that `holdout` could take some of")
        return self
