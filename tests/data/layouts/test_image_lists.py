"""Stanford Dogs and MIT-67 by their lists, packed and unpacked."""

import io

import numpy as np
import pytest

from distillery.errors import UserError

CLASSES = ("n02085620-Chihuahua", "n02085782-Japanese_spaniel")


def mat_list(paths):
    """A list as Stanford's: a column of cells, each with one text."""
    from scipy.io import savemat

    cells = np.empty((len(paths), 1), dtype=object)
    cells[:, 0] = paths
    buffer = io.BytesIO()
    savemat(buffer, {"file_list": cells, "labels": np.ones((len(paths), 1))})
    return buffer.getvalue()


@pytest.fixture
def listed(tmp_path, jpegs, pack_tree, unpack_tree):
    """Both data sets in miniature, one image on no list."""
    images = {f"{name}/{number}.jpg": next(jpegs) for name in CLASSES for number in range(5)}
    train = [path for path in images if path[-5] in "012"]
    val = [path for path in images if path[-5] == "3"]
    pictures = {f"Images/{path}": content for path, content in images.items()}

    def write(layout, train=train, val=val, packed=True):
        folder = tmp_path / f"{layout}-{packed}"
        if layout == "mit67":
            lists = {"TrainImages.txt": "\n".join(train).encode(), "TestImages.txt": "\r\n".join(val).encode() + b"\n"}
            unpack_tree(lists, folder)
        else:
            lists = {"file_list.mat": b"x", "train_list.mat": mat_list(train), "test_list.mat": mat_list(val)}
            pack_tree(lists, folder / "lists.tar") if packed else unpack_tree(lists, folder)
        archive = "indoorCVPR_09.tar" if layout == "mit67" else "images.tar"
        pack_tree(pictures, folder / archive) if packed else unpack_tree(pictures, folder)
        return folder

    write.train, write.val, write.images = train, val, images
    return write


@pytest.mark.parametrize("layout", ["mit67", "stanford-dogs"])
def test_archives_and_folders_give_equal_shards(listed, layout, prepare_as, unpack_tree, tmp_path):
    manifest, expected = prepare_as(listed(layout), layout, classes=2, images={"train": 6, "val": 2})
    assert manifest.classes == CLASSES
    assert prepare_as(listed(layout, packed=False), layout)[1] == expected
    tree = {f"train/{path}": listed.images[path] for path in listed.train}
    tree |= {f"val/{path}": listed.images[path] for path in listed.val}
    assert prepare_as(unpack_tree(tree, tmp_path / "folders"), layout)[1] == expected


@pytest.mark.parametrize("layout", ["mit67", "stanford-dogs"])
def test_lists_that_contradict_the_images_are_refused(listed, layout, prepare_as):
    with pytest.raises(UserError, match=r"n02085620-Chihuahua/9\.jpg is not in .*: Images/; get the data set again"):
        prepare_as(listed(layout, train=[*listed.train, f"{CLASSES[0]}/9.jpg"]), layout)
    with pytest.raises(UserError, match=r"n02085620-Chihuahua/0\.jpg is listed twice"):
        prepare_as(listed(layout, val=[*listed.val, f"{CLASSES[0]}/0.jpg"]), layout)
    with pytest.raises(UserError, match=r"val/n02085782-Japanese_spaniel/ is missing"):
        prepare_as(listed(layout, val=listed.val[:1]), layout)


def test_missing_parts_are_named(listed, prepare_as):
    folder = listed("mit67")
    (folder / "indoorCVPR_09.tar").unlink()
    with pytest.raises(UserError, match=r"indoorCVPR_09\.tar is missing"):
        prepare_as(folder, "mit67")
    folder = listed("stanford-dogs", packed=False)
    (folder / "test_list.mat").write_bytes(b"no matlab")
    with pytest.raises(UserError, match=r"test_list\.mat cannot be read: "):
        prepare_as(folder, "stanford-dogs")
