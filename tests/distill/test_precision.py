import torch

from distillery.distill.precision import as_the_networks, full_precision, without_autocast


@full_precision
def product(a, b, scale=1.0):
    return a @ b * scale


@full_precision
def dtypes(*tensors):
    return [tensor.dtype for tensor in tensors]


def test_half_is_widened_and_the_gradient_comes_back_in_half():
    a = torch.full((2, 300), 30.0, dtype=torch.float16, requires_grad=True)
    result = product(a, torch.full((300, 2), 30.0, dtype=torch.float16))
    assert result.dtype == torch.float32
    assert result[0, 0] == 270_000  # above float16's largest number
    result.sum().backward()
    assert a.grad.dtype == torch.float16


def test_autocast_is_left_outside():
    a = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        inside = product(a, b=a)
    assert torch.equal(inside, a @ a)


def test_the_widest_type_wins_and_integers_stay():
    half, double, integer = torch.ones(1).half(), torch.ones(1).double(), torch.ones(1).long()
    assert dtypes(half, integer) == [torch.float32, torch.int64]
    assert dtypes(half, double, integer) == [torch.float64, torch.float64, torch.int64]


def test_within_a_loss_a_layer_is_computed_as_the_networks_are():
    a = torch.randn(8, 8)

    def product():
        with without_autocast(a):
            assert (a @ a).dtype == torch.float32
            with as_the_networks(a):
                found = (a @ a).dtype
            assert (a @ a).dtype == torch.float32
        return found

    assert product() == torch.float32
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            assert product() == dtype
    assert product() == torch.float32
