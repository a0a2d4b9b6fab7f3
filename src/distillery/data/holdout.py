"""Hold out training images, so that an epoch can be chosen without looking at the images that are reported."""

from collections import defaultdict
from dataclasses import replace

from distillery.data.sources import RawImages
from distillery.errors import UserError
from distillery.randomness import addressed_permutation


def hold_out(images: RawImages, share: float, name: str) -> RawImages:
    """Move ``share`` of the training images of every class to a split ``holdout``; to ``val`` where there is none.

    A class gives ``round(share * images)`` of its images, but at least one and never its last one; which ones depends
    on nothing but how many it has, so the same images are held out on every machine.

    Raises:
        UserError: a class has a single training image.
    """
    by_class = defaultdict(list)
    for image in images.splits["train"]:
        by_class[image.label].append(image)
    train, held = [], []
    for label, members in sorted(by_class.items()):
        if len(members) < 2:
            raise UserError(
                f"{name}: class {images.classes[label]!r} has one training image, too few for `holdout` of {name!r} in "
                "datasets.yaml; remove the class or the key"
            )
        count = min(max(1, round(share * len(members))), len(members) - 1)
        chosen = set(addressed_permutation(len(members), 0, "holdout", label)[:count].tolist())
        held += [image for place, image in enumerate(members) if place in chosen]
        train += [image for place, image in enumerate(members) if place not in chosen]
    if "val" not in images.splits:
        folders = images.folders | {"val": images.folders["train"]}
        return replace(images, folders=folders, splits={"train": train, "val": held})
    folders = images.folders | {"holdout": images.folders["train"]}
    # The images that are chosen by stand between those for training and those that are reported.
    splits = {"train": train, "holdout": held, "val": images.splits["val"]}
    return replace(images, folders=folders, splits=splits)
