"""Few labels: which share of the training images a run may know the classes of, and what it does with the others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, NonNegativeInt, Tag

from distillery.errors import UserError
from distillery.experiment.address import parse_address
from distillery.experiment.schema.block import Block
from distillery.experiment.schema.objective import Objective
from distillery.experiment.schema.recipe import Recipe


def _checked_address(text: str) -> str:
    parse_address(text)
    return text


# Of each batch, where the run says nothing else.
LABELLED_SHARE = 0.5


class LabelList(Block):
    """The images that have labels, as a list names them."""

    list: Annotated[str, Field(min_length=1), AfterValidator(_checked_address)] = Field(
        description="a file with an image a line, or https://...#sha256=<64 hex digits> of one"
    )

    @property
    def file_name(self) -> str:
        """Its last part, without a checksum."""
        return self.list.partition("#")[0].rpartition("/")[2]


def _count_or_share(value: Any) -> Any:  # noqa: ANN401
    if value == "all" or (type(value) is int and 0 <= value <= 10**9) or (type(value) is float and 0 < value < 1):
        return value
    raise ValueError(
        "expected a number of images, as 100 (0: no labels), a share between 0 and 1, as 0.1, {list: FILE}, or all"
    )


def _labels_class(value: Any) -> str:  # noqa: ANN401
    return "LabelList" if isinstance(value, (Mapping, LabelList)) else "count"


Number = Annotated[
    int | float | Literal["all"],
    BeforeValidator(
        _count_or_share,
        json_schema_input_type=NonNegativeInt | Annotated[float, Field(gt=0, lt=1)] | Literal["all"],
    ),
]
Count = Annotated[
    Annotated[Number, Tag("count")] | Annotated[LabelList, Tag("LabelList")], Discriminator(_labels_class)
]
Images = Literal["all", "labelled"]
LabelledShare = Annotated[float, Field(gt=0, lt=1)]


class FewLabels(Block):
    """What a run may know of its training images' classes.

    Attributes:
        labels: so many labels, or this share of them, or those of a list; 0 for a run that learns from no label, all
            where only the images of the data set's ``unlabelled`` have none.
        images: train on ``all`` images, whose labels are unknown but for these, or on the ``labelled`` ones alone.
        labelled_share: the labelled images' part of each batch, where there are others in it.
    """

    numerics = 1

    labels: Count
    images: Images
    labelled_share: LabelledShare | None = None

    @property
    def listed(self) -> bool:
        """Whether a list names them, for every seed."""
        return isinstance(self.labels, LabelList)

    @property
    def shown(self) -> str:
        """What a table says of them: ``0``, ``50``, ``10 %``; ``50 + unlabelled`` where other images are used too."""
        if isinstance(self.labels, float):
            labels = f"{100 * self.labels:g} %"
        else:
            labels = Path(self.labels.file_name).stem if isinstance(self.labels, LabelList) else str(self.labels)
        return labels if self.images == "labelled" or self.labels == 0 else f"{labels} + unlabelled"

    def count(self, images: int) -> int:
        """How many of so many training images with labels may be used with them; of no list.

        Raises:
            UserError: a share that is none of them, or all.
        """
        assert not isinstance(self.labels, LabelList)
        if self.labels == 0:
            return 0
        if self.labels == "all":
            return images
        count = self.labels if isinstance(self.labels, int) else round(self.labels * images)
        if not 0 < count < images:
            raise UserError(
                f"labels: {self.labels} of {images} training images would be {count}; give fewer than all and at least "
                "one, or write all"
            )
        return count

    def check(self, objective: Objective, recipe: Recipe) -> None:
        """Check that an objective and a recipe can learn from such images.

        Raises:
            UserError: they cannot; the line begins with the key at fault.
        """
        terms = objective.terms()
        for name, options in terms.items():
            if options.needs.all_labels:
                raise UserError(f"labels: {name} needs the label of every image; remove {name} or write labels: all")
            if self.labels == 0 and options.needs.labels:
                raise UserError(f"labels: 0 leaves {name} nothing to learn from; remove {name} or give it some labels")
            # Its memory is compared with all that it holds. A term of labels reads the rows of labelled images alone.
            remembers_all = options.needs.indices and not options.draws_by_index and not options.needs.labels
            if self.images == "labelled" and remembers_all:
                raise UserError(
                    f"images: {name} remembers every training image, and would never see those without a label; write "
                    "images: all"
                )
        if self.images == "labelled":
            return
        if objective.sampling() is not None:
            cure = "remove it" if self.labels == 0 else "write images: labelled"
            raise UserError(f"images: the order of images needs all labels (BAKE's partners); {cure}")
        if self.labels == 0:
            return
        if not any(options.needs.labels for options in terms.values()):
            raise UserError(
                f"labels: {self.labels} have no effect, for no term of the objective learns from labels; write "
                "labels: all, or images: labelled to leave the other images out"
            )
        if all(options.needs.labels for options in terms.values()):
            raise UserError(
                "images: no term of the objective learns from images without a label; write images: labelled"
            )
        if recipe.mix is not None:
            raise UserError("mix: images with and without a label cannot be mixed; write mix: null or images: labelled")
        if recipe.repeats > 1:
            raise UserError(f"repeats: {recipe.repeats} cannot go with `labels`; set repeats: 1 or images: labelled")


def resolve_labels(
    labels: int | float | Literal["all"] | LabelList | None,
    images: Images | None,
    labelled_share: float | None,
    objective: Objective,
    unlabelled: bool = False,
) -> FewLabels | None:
    """What a run says of labels, with its defaults; None where it knows all.

    Images without a label are used where a term learns from a teacher, unless the run says otherwise. ``unlabelled``
    says that the data set has some of its own.

    Raises:
        UserError: a key has no effect; the line begins with it.
    """
    if unlabelled and labels in (None, "all"):
        labels = "all" if any(options.needs.labels for options in objective.terms().values()) else 0
    elif labels is None or labels == "all":
        for key, value in (("images", images), ("labelled_share", labelled_share)):
            if value is not None:
                raise UserError(f"{key}: {value} has no effect without `labels`; remove it, or add e.g. labels: 100")
        return None
    if labels == 0:
        for key, value in (("images", images if images == "labelled" else None), ("labelled_share", labelled_share)):
            if value is not None:
                raise UserError(f"{key}: {value} has no effect with `labels: 0`, for no image has a label; remove it")
        return FewLabels(labels=0, images="all")
    if images is None:
        images = "all" if any(options.needs.teacher for options in objective.terms().values()) else "labelled"
    if images == "labelled":
        if labelled_share is not None:
            raise UserError(f"labelled_share: {labelled_share} has no effect, for all images of a batch have labels")
        return FewLabels(labels=labels, images=images)
    return FewLabels(labels=labels, images=images, labelled_share=labelled_share or LABELLED_SHARE)
