"""Settings of other projects as recipes: what timm and torchdistill write down of a training."""
