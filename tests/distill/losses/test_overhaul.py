import torch
from tests.distill.conftest import PRECISIONS
from tests.distill.made_up import objective_of
from torch.nn import functional as F

from distillery.distill.losses.cross_entropy import cross_entropy_loss
from distillery.distill.losses.overhaul import overhaul_loss
from distillery.distill.losses.partial_l2 import bn_margin, partial_l2
from distillery.distill.step import Outputs, StepInputs
from distillery.distill.term import StagePair, TermContext


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


def test_connectors_are_computed_in_the_runs_precision_and_nothing_else_is(vectors):
    """The original's loss and gradients, within what 8 bits of the inputs may cost."""
    precision = PRECISIONS["bfloat16 under autocast"]
    stored = vectors("overhaul_4stage", torch.float32)
    pairs = [StagePair(*(stored[f"feat_{side}{i}"].shape[1] for side in "st"), stored[f"margin{i}"].view(1, -1, 1, 1))
             for i in range(4)]  # fmt: skip
    objective = objective_of({"overhaul": {}}, TermContext(tuple(pairs)))
    seen = []
    for i in range(4):
        convolution, norm = objective.terms["overhaul"].connectors[str(i)]
        convolution.weight.data.copy_(stored[f"conv{i}"])
        norm.weight.data.copy_(stored[f"bn_w{i}"])
        norm.bias.data.copy_(stored[f"bn_b{i}"])
        convolution.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    features = tuple(stored.leaf(f"feat_s{i}") for i in range(4))
    teacher = Outputs(stored["s_logits"], tuple(stored[f"feat_t{i}"] for i in range(4)))
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(StepInputs(Outputs(stored["s_logits"], features), stored["labels"], teacher))["loss"]
    assert seen == [torch.bfloat16] * 4
    assert loss.dtype == torch.float32
    loss.backward()
    # The term divides by the batch and by 10,000; the stored gradients are of the cross-entropy's sum with such a loss.
    precision.close(loss, stored.exact("distill_sum") / len(stored["labels"]) / stored.meta["divisor"])
    for i, feature in enumerate(features):
        precision.close(feature.grad, stored.exact(f"grad_feat_s{i}"))
        weight = objective.terms["overhaul"].connectors[str(i)][0].weight
        precision.close(weight.grad, stored.exact(f"grad_conv{i}"))
    # Outside autocast they are in float32.
    objective(StepInputs(Outputs(stored["s_logits"], features), stored["labels"], teacher))
    assert seen[4:] == [torch.float32] * 4
