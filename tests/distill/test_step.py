import pytest
import torch

from distillery.distill.step import Maps, Outputs

HALF = torch.ones(2, 3, dtype=torch.float16)
FEATURES = {
    "stages": (HALF,),
    "embedding_BD": HALF,
    "unpooled": Maps(raw=(HALF,)),
    "averaged": HALF,
    "head": HALF,
    "last": HALF,
    "each_teacher": (Outputs(HALF),),
}


@pytest.mark.parametrize("given", [(), *((name,) for name in FEATURES), tuple(FEATURES)])
def test_every_tensor_of_outputs_is_widened_whatever_comes_with_the_logits(given):
    outputs = Outputs(HALF, **{name: FEATURES[name] for name in given})
    seen = []
    outputs.widened().each(lambda tensor: seen.append(tensor.dtype) or tensor)
    assert seen == [torch.float32] * (1 + len(given))
