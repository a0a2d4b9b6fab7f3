"""Rows of a bank: what comes back of a teacher's answers, and what does not fit."""

import numpy as np
import pytest
import torch

from distillery.distill.bank import Bank, RowFormat, part_path
from distillery.distill.step import Outputs
from distillery.errors import UserError
from distillery.experiment.bank import row_bytes
from distillery.experiment.schema.teacher import Answers, TopRows

TOP = TopRows(top=3)


def outputs(rows=5, classes=10, features=4):
    generator = torch.Generator().manual_seed(0)
    logits_BC = 5 * torch.randn(rows, classes, generator=generator)
    return Outputs(logits_BC, embedding_BD=torch.randn(rows, features, generator=generator) if features else None)


@pytest.mark.parametrize("rows", ["float32", "float16", TOP])
@pytest.mark.parametrize("features", [0, 4])
def test_a_row_is_as_long_as_forecast(rows, features):
    if rows is TOP and features:
        return
    answers = Answers(rows=rows)
    assert RowFormat(answers, 10, features).dtype.itemsize == row_bytes(answers, 10, features)


@pytest.mark.parametrize("features", [0, 4])
def test_float32_rows_come_back_to_the_bit(features):
    form, given = RowFormat(Answers(), 10, features), outputs(features=features)
    read = form.decode(form.encode(given))
    assert torch.equal(read.logits_BC, given.logits_BC)
    assert (read.embedding_BD is None) == (features == 0)
    assert features == 0 or torch.equal(read.embedding_BD, given.embedding_BD)


def test_float16_rows_come_back_rounded():
    form, given = RowFormat(Answers(rows="float16"), 10, 4), outputs()
    read = form.decode(form.encode(given))
    assert read.logits_BC.dtype == read.embedding_BD.dtype == torch.float32
    assert torch.equal(read.logits_BC, given.logits_BC.half().float())


def test_answers_in_half_precision_come_back_to_the_bit():
    form, given = RowFormat(Answers(), 10), Outputs(outputs().logits_BC.bfloat16())
    assert torch.equal(form.decode(form.encode(given)).logits_BC, given.logits_BC.float())


def test_the_top_rows_keep_the_probabilities_of_the_largest_and_of_all_others_together():
    form, given = RowFormat(Answers(rows=TOP), 10), outputs(features=0)
    read, wanted = (each.softmax(1) for each in (form.decode(form.encode(given)).logits_BC, given.logits_BC))
    largest, classes_BK = wanted.topk(3)
    torch.testing.assert_close(read.gather(1, classes_BK), largest, rtol=5e-3, atol=1e-4)
    rest = read.scatter(1, classes_BK, 0.0)
    torch.testing.assert_close(rest.sum(1), 1 - largest.sum(1), rtol=5e-3, atol=1e-4)
    assert (rest > 0).sum(1).tolist() == [7] * 5


@pytest.mark.parametrize("rows", ["float16", TOP])
def test_what_float16_cannot_hold_is_refused(rows):
    form = RowFormat(Answers(rows=rows), 10)
    with pytest.raises(UserError, match=r"the teacher's logits reach 70000, which float16 cannot hold; write float32"):
        form.encode(Outputs(torch.full((2, 10), 7e4)))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_teacher_that_answers_nonsense_is_refused(broken):
    with pytest.raises(UserError, match="cannot teach"):
        RowFormat(Answers(), 10).encode(Outputs(torch.full((2, 10), broken)))


@pytest.mark.parametrize("rows", ["float32", "float16", TOP])
def test_the_error_is_that_of_rounding_for_the_same_answers_and_large_for_others(rows):
    form, given = RowFormat(Answers(rows=rows), 10), outputs(features=0)
    records = form.encode(given)
    assert form.error(records, given) < (1e-3 if rows != "float32" else 1e-9)
    assert form.error(records, Outputs(given.logits_BC.flip(0))) > 0.5


def written(folder, parts=2, samples=6):
    """A bank whose row of image i, copy c, in part p answers 100 p + 10 i + c for every class."""
    form = RowFormat(Answers(), 3)
    keys = np.arange(samples)  # image 0 once and twice, image 1 ...
    for part in range(parts):
        values = [100 * part + 10 * (key // 2) + key % 2 for key in keys]
        np.save(part_path(folder, part), form.encode(Outputs(torch.tensor(values).float()[:, None].expand(-1, 3))))
    return Bank(folder, form, lambda part: keys, lambda index, copy: 2 * index + copy)


def test_rows_are_found_by_part_image_and_copy(tmp_path):
    addresses = [(1, 2, 0), (0, 1, 1), (1, 0, 1)]
    found = written(tmp_path).row_format.decode(written(tmp_path).records(addresses)).logits_BC[:, 0]
    assert found.tolist() == [120, 11, 101]


def test_batches_come_in_order(tmp_path):
    batches = [[(part, index, 0)] * 2 for part in (0, 1) for index in (2, 0, 1)]
    found = [answer.logits_BC[:, 0].tolist() for answer in written(tmp_path).answers(batches)]
    assert found == [[20, 20], [0, 0], [10, 10], [120, 120], [100, 100], [110, 110]]


def test_an_image_without_a_row_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no answer to an image"):
        written(tmp_path).records([(0, 3, 0)])


def test_an_error_while_reading_ahead_is_raised_where_the_batch_is_used(tmp_path):
    batches = written(tmp_path).answers([[(0, 1, 0)], [(0, 9, 0)]])
    assert next(batches).logits_BC.tolist() == [[10.0] * 3]
    with pytest.raises(UserError, match="holds no answer"):
        next(batches)
