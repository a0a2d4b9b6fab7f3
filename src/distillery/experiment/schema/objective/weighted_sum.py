"""An objective: the weighted sum of the terms that it names."""

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import ModelWrapValidatorHandler, create_model, model_validator
from pydantic_core import PydanticCustomError

from distillery.errors import UserError, located
from distillery.experiment.plugins import own_terms
from distillery.experiment.schema.block import Block
from distillery.experiment.schema.objective.registry import TERMS, term_options
from distillery.experiment.schema.objective.term import Needs, Sampling, ScheduledWeight, TermOptions
from distillery.experiment.schema.recipe import Recipe


@lru_cache(maxsize=64)
def _widened(objective: type[Any], own: tuple[tuple[str, type[TermOptions]], ...]) -> Any:  # noqa: ANN401
    fields: dict[str, Any] = {name: (options | None, None) for name, options in own}
    return create_model("Objective", __base__=objective, __module__=__name__, **fields)


class _WeightedSum(Block):
    """What an objective can do, whatever terms there are."""

    @model_validator(mode="wrap")
    @classmethod
    def _with_own_terms(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401
        """Give the class a field more for each term of a plugin that is named."""
        named = [name for name in data if name not in cls.model_fields] if isinstance(data, Mapping) else []
        try:
            own = tuple((name, term_options(name)) for name in named if name in own_terms())
        except UserError as error:
            raise PydanticCustomError("plugin", "{said}", {"said": str(error)}) from None
        return _widened(cls, own).model_validate(data) if own else handler(data)

    @model_validator(mode="after")
    def _has_terms(self) -> Self:
        if not self.terms():
            raise ValueError("an objective needs at least one term")
        if not any(
            term.weight if not isinstance(term.weight, ScheduledWeight) else term.weight.value
            for term in self.terms().values()
        ):
            raise ValueError("every weight is 0, so nothing would be trained; give one term a weight above 0")
        return self

    def terms(self) -> dict[str, TermOptions]:
        """The terms that are present, by name, in the order of ``TERMS``."""
        return {name: options for name in type(self).model_fields if (options := getattr(self, name)) is not None}

    def needs(self) -> Needs:
        """What all terms together ask for."""
        needs = Needs()
        for options in self.terms().values():
            needs |= options.needs
        return needs

    def of_teacher(self, teacher: str) -> Self:
        """The terms that learn from this teacher, or from none, as they are where it is the only one."""
        others = {
            name: None
            for name, options in self.terms().items()
            if options.needs.teacher and options.teacher not in (None, teacher)
        }
        own = {
            name: options.model_copy(update={"teacher": None})
            for name, options in self.terms().items()
            if options.teacher == teacher
        }
        return self.model_copy(update=others | own)

    def heads(self) -> list[str]:
        """The names of the terms that may deploy parts with the student."""
        return [name for name, term in self.terms().items() if term.head is not None]

    def default_teacher_norm(self) -> Literal["eval", "batch"]:
        """``batch`` where a term wants it, else ``eval``."""
        return "batch" if any(term.default_teacher_norm == "batch" for term in self.terms().values()) else "eval"

    def sampling(self) -> Sampling | None:
        """The order of images that a term asks for."""
        return next((found for term in self.terms().values() if (found := term.sampling()) is not None), None)

    def check_terms(self) -> None:
        """Check that every term goes with the others.

        Raises:
            UserError: two do not.
        """
        orders = {name: found for name, term in self.terms().items() if (found := term.sampling()) is not None}
        if len(set(map(repr, orders.values()))) > 1:
            raise UserError(
                f"objective: {' and '.join(orders)} each want an order of images of their own; leave one out"
            )
        heads = self.heads()
        if len(heads) > 1:
            raise UserError(f"objective: {' and '.join(heads)} each replace the student's last layer; leave one out")
        views = [
            next((name for name, term in self.terms().items() if getattr(term.needs, kind)), None)
            for kind in ("view", "partner")
        ]
        if all(views):
            raise UserError(
                f"objective: {' and '.join(map(str, views))} each want a second image of their own; leave one out"
            )

    def check(self, recipe: Recipe) -> None:
        """Check that every term goes with a recipe, and with the others.

        Raises:
            UserError: one does not; the line begins with the key at fault.
        """
        self.check_terms()
        # A weight that changes rises: it is largest in the last epoch.
        if not any(term.weight_at(recipe.total_epochs - 1) for term in self.terms().values()):
            raise UserError(
                "objective: every weight is 0 to the last epoch, so nothing would be trained; shorten a warm-up"
            )
        if recipe.augment_view is not None and not self.needs().view:
            raise UserError("augment_view: no term of the objective compares two views of an image; remove this key")
        for name, term in self.terms().items():
            single = (term.needs.indices and not term.draws_by_index) or term.needs.partner
            if single and recipe.mix is not None:
                raise UserError(
                    f"mix: {name} looks at single images and cannot learn from mixed ones; write `mix: null`"
                )
            term.check(recipe)

    def check_classes(self, classes: int) -> None:
        """Check that every term can tell so many classes apart.

        Raises:
            UserError: one cannot; the line begins with the key at fault.
        """
        for name, term in self.terms().items():
            with located(f"objective.{name}"):
                term.check_classes(classes)


if TYPE_CHECKING:

    class Objective(_WeightedSum):
        """The loss of a run: a weighted sum of named terms, one field a term."""

else:
    _fields: dict[str, Any] = {name: (options | None, None) for name, options in TERMS.items()}
    Objective = create_model(
        "Objective",
        __base__=_WeightedSum,
        __module__=__name__,
        __doc__="The loss of a run: a weighted sum of named terms. One field a term; its options are its keys.",
        **_fields,
    )


# What a run learns by unless it says otherwise: cross-entropy with the labels.
PLAIN = Objective.model_validate({"ce": {}})
