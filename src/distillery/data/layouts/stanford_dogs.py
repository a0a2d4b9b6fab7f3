"""Stanford Dogs: images in class folders, and MATLAB lists of those for training and for testing."""

from functools import partial

from distillery.data.layouts._image_lists import find_listed
from distillery.data.sources import Layout

LAYOUT = Layout(
    partial(
        find_listed,
        archive="images.tar",
        lists_archive="lists.tar",
        lists={"train": "train_list.mat", "val": "test_list.mat"},
    ),
    "put images.tar and lists.tar there (from the page of Stanford Dogs), or what they unpack to",
)
