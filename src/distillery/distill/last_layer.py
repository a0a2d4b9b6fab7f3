"""A network's last layer as the numbers that it multiplies by and adds.

C classes, D features.
"""

from torch import Tensor, nn

from distillery.errors import UserError


def weight_and_bias(classifier: nn.Module | None, key: str) -> tuple[Tensor, Tensor | None]:
    """The weight (C, D) and the bias (C,), if it has one, of a linear layer or a 1 x 1 convolution.

    Raises:
        UserError: the layer is neither; the line begins with ``key``.
    """
    if isinstance(classifier, nn.Linear):
        return classifier.weight, classifier.bias
    if isinstance(classifier, nn.Conv2d) and classifier.weight[0, 0].numel() == 1 and classifier.groups == 1:
        return classifier.weight.flatten(1), classifier.bias
    raise UserError(
        f"{key}: needs a network whose last layer is linear or a 1 x 1 convolution, not {type(classifier).__name__}"
    )
