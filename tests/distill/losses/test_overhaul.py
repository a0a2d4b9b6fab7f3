import torch
from torch.nn import functional as F

from distillery.distill.losses.cross_entropy import cross_entropy_loss
from distillery.distill.losses.overhaul import overhaul_loss
from distillery.distill.losses.partial_l2 import bn_margin, partial_l2


def test_four_stages_reproduce_the_original(vectors, precision):
    stored = vectors("overhaul_4stage", precision.dtype)
    inputs = {f"{kind}{i}": stored.leaf(f"{kind}{i}") for kind in ("feat_s", "conv") for i in range(4)}
    connected = []
    for i in range(4):
        widened = F.conv2d(inputs[f"feat_s{i}"], inputs[f"conv{i}"])
        scale, shift = stored[f"bn_w{i}"], stored[f"bn_b{i}"]
        connected.append(F.batch_norm(widened, None, None, scale, shift, training=True, eps=1e-5))
    with precision.context():
        loss = overhaul_loss(
            connected, [stored[f"feat_t{i}"] for i in range(4)], [stored[f"margin{i}"] for i in range(4)]
        )
        divided = loss / len(stored["labels"]) / stored.meta["divisor"]
        total = cross_entropy_loss(stored["s_logits"], stored["labels"]) + divided
    precision.close(loss, stored.exact("distill_sum"))
    precision.close(total, stored.exact("total"))
    total.backward()
    for name, tensor in inputs.items():
        precision.close(tensor.grad, stored.exact(f"grad_{name}"))


def test_margins_reproduce_the_original(vectors):
    stored = vectors("overhaul_4stage", torch.float32)
    for i in range(4):
        margin = bn_margin(stored[f"t_bn_weight{i}"], stored[f"t_bn_bias{i}"])
        torch.testing.assert_close(margin, stored[f"margin{i}"], rtol=2e-7, atol=0)


def test_stages_far_from_the_end_weigh_less():
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randn(2, 3, 2, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    margin = torch.full((1, 3, 1, 1), -0.5)
    one = partial_l2(source, target, margin)
    torch.testing.assert_close(overhaul_loss([source] * 3, [target] * 3, [margin] * 3), 1.75 * one)


def test_gradient_is_the_derivative():
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(2, 3, 2, 2, dtype=torch.float64, generator=generator) for _ in range(4)]
    margins = [torch.full((1, 3, 1, 1), -0.5)] * 2
    sources = [tensor.requires_grad_() for tensor in tensors[:2]]
    assert torch.autograd.gradcheck(lambda *x: overhaul_loss(x, tensors[2:], margins), sources)
