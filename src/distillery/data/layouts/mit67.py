"""MIT-67 Indoor: images in class folders, and text lists of those for training and for testing."""

from functools import partial

from distillery.data.layouts._image_lists import find_listed
from distillery.data.sources import Layout

LAYOUT = Layout(
    partial(
        find_listed,
        archive="indoorCVPR_09.tar",
        lists_archive=None,
        lists={"train": "TrainImages.txt", "val": "TestImages.txt"},
    ),
    "put indoorCVPR_09.tar, TrainImages.txt and TestImages.txt there (from the page of Indoor Scene Recognition), or "
    "what they unpack to",
)
