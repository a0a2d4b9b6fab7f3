"""The tables say what the manifest says, and what is odd."""

from distillery.data.overview import describe_manifest


def rows(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_everything_odd_is_counted_with_an_example(place, noise_png):
    place.fill(train=3, val=2)
    place.write("train/ape/003.png", noise_png(99, (9, 7), "L"))
    place.write("train/bee/003.png", noise_png(99, (9, 7), "L"))
    place.write("val/ape/002.png", noise_png(99, (9, 7), "L"))
    place.write("train/ape/broken.png", b"nothing")
    place.write("train/ape/notes.txt", b"text")
    place.write("train/ape/.hidden", b"")
    text = describe_manifest(place.prepare(on_corrupt="skip"))
    found = rows(text)
    assert text.startswith("toy: 2 classes, digest ")
    assert found[2][:8] == ["train", "8", "4", "8 to 9", "6 to 7", "PNG", "RGB 6, L 2", "1"]
    assert found[3][:3] == ["val", "5", "2 to 3"]
    assert ["ape", "4", "3"] in found
    assert ["bee", "4", "2"] in found
    odd = {row[0]: row[1:] for row in found}
    count, example = odd["validation images that are also training images"]
    assert (count, example) == ("1", "train/ape/003.png = val/ape/002.png")
    assert odd["copies among the training images"][0] == "1"
    assert odd["copies among the validation images"][0] == "0"
    assert odd["images left out, for they cannot be decoded"][0] == "1"
    assert odd["images left out, for they cannot be decoded"][1].startswith("train/ape/broken.png: ")
    assert odd["files passed over: not an image's extension"] == ["1", ".txt"]
    assert odd["files passed over: hidden"][0] == "1"


def test_of_many_classes_the_smallest_and_largest_are_listed(place):
    classes = tuple(f"class{number:02d}" for number in range(25))
    place.fill(train=2, val=1, classes=classes)
    (place.raw / "train/class07/001.png").unlink()
    found = rows(describe_manifest(place.prepare()))
    listed = [row for row in found if row[0].startswith(("class0", "class1", "class2", "..."))]
    assert listed[0] == ["class07", "1", "1"]
    assert listed[5][0] == "... 15 between ..."
    assert len(listed) == 11
