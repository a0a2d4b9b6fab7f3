"""Plan the taps of any network: where its stages end, what is tapped there, and the vector before its last layer."""

from dataclasses import replace
from math import prod

from torch import Tensor, nn

from distillery.models.taps.features import NORMS, activation_of, feature_before_activation, find_source
from distillery.models.taps.plan import Source, TapError, TapPlan, TapPoint
from distillery.models.taps.recording import PLAIN_ACTIVATIONS
from distillery.models.taps.stages import StageEnd, find_stage_ends, map_shape
from distillery.models.taps.trace import BATCH, Op, Trace, trace_network

LINEAR = ("addmm", "mm", "bmm", "baddbmm", "convolution")
MEANS = ("mean", "_adaptive_avg_pool2d", "avg_pool2d")
VIEWS = ("view", "_unsafe_view", "squeeze", "unsqueeze", "alias", "as_strided_", "clone", "_to_copy")
CHANNEL_DIMS = {"BCHW": 1, "BHWC": 3, "BNC": 2}


def plan_taps(model: nn.Module, input_size: int, name: str | None = None) -> TapPlan:
    """Find the features of a network's stages and its embedding; a copy of the network runs, on no memory.

    Args:
        model: the network as it was built, before DDP and ``torch.compile``, with or without its weights.
        input_size: side in pixels of the square RGB images that it will see.
        name: what to call it in the plan and in errors; its class by default.

    Returns:
        Up to four stages, from the images to the logits.

    Raises:
        TapError: the network is wrapped, cannot run on such images, or has no feature maps or no final linear layer.
    """
    name = name or type(model).__name__
    if [child for child, _ in model.named_children()] in (["module"], ["_orig_mod"]):
        raise TapError(f"{name}: taps are planned on the network itself, not on {type(model).__name__} around it")
    try:
        trace = trace_network(model, input_size)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise TapError(
            f"{name}: cannot run on images of {input_size} x {input_size} pixels ({reason}); "
            "choose the size that the network was built for"
        ) from error
    found, ends = find_stage_ends(trace, model)
    if not ends:
        raise TapError(f"{name}: no feature maps were found between its images and its logits")
    points = tuple(_point(trace, stage, end, name) for stage, end in enumerate(ends))
    assert len({point.sources for point in points}) == len(points), "two stages are one"
    embedding, features, classifier, value = _embedding(trace, name)
    averaged = _averaged(trace, value, features, len(points))
    last = averaged or _last(trace, ends[-1].value, points[-1])
    if last is None or last.height * last.width == 1:
        larger = (_raw(point, point.raw) for point in reversed(points) if point.height * point.width > 1)
        last = next((point for point in larger if point is not None), last)
    return TapPlan(name, input_size, found, points, embedding, features, classifier, averaged, last, points)


def _point(trace: Trace, stage: int, end: StageEnd, name: str) -> TapPoint:
    shape = map_shape(trace, end.value)
    assert shape is not None, end
    channel_dim = CHANNEL_DIMS[shape.layout]
    feature = feature_before_activation(trace, end.value, channel_dim, end.module)
    if feature is None:
        raise TapError(f"{name}: no module of it takes or returns the features at the end of {end.module}")
    channels = len(feature.order) if feature.order is not None else sum(item.channels for item in feature.sources)
    return TapPoint(
        stage=stage,
        name=end.module,
        sources=feature.sources,
        order=feature.order,
        layout=shape.layout,
        prefix_tokens=shape.prefix_tokens,
        channels=channels,
        height=shape.height,
        width=shape.width,
        activation=feature.activation,
        raw=find_source(trace, end.value, channel_dim, end.module),
        activated=feature.activated,
    )


def _embedding(trace: Trace, name: str) -> tuple[Source, int, str | None, int]:
    """What enters the last layer with weights on the way to the logits, and that layer; of two heads, the first.

    A network without classifier gives it in their place.

    The value comes last, as the layer's own matrix product takes it.
    """
    if getattr(trace.network, "num_classes", None) == 0:  # what a network without classifier gives
        source = find_source(trace, trace.logits, 1, "")
        if source is None:
            raise TapError(f"{name}: no module of it returns its embedding")
        return source, source.channels, None, trace.logits
    op: Op | None = trace.maker(trace.logits)
    while op is not None and op.name not in LINEAR:
        earlier = [value for value in op.inputs if value in trace.from_images]
        op = trace.maker(earlier[0]) if earlier else None
    if op is None:
        raise TapError(f"{name}: no linear layer was found before its logits")
    value = next(value for value in op.inputs if value in trace.from_images)
    source = _input_of(trace, op, value)
    if source is None:
        raise TapError(f"{name}: no module of it takes or returns what enters its last linear layer")
    holds_weight = isinstance(getattr(trace.network.get_submodule(op.module), "weight", None), Tensor)
    return source, source.channels, op.module if holds_weight else None, value


def _averaged(trace: Trace, value: int, features: int, stage: int) -> TapPoint | None:
    """The map whose mean over all pixels is the embedding ``value``, where hooks see it or what is activated to it."""
    maker = trace.maker(value)
    while maker is not None and maker.name in VIEWS:
        value = maker.inputs[0]
        maker = trace.maker(value)
    if maker is None or maker.name not in MEANS or prod(trace.values[value].shape) != BATCH * features:
        return None
    value, pool = maker.inputs[0], maker.module
    shape = map_shape(trace, value)
    if shape is None or shape.channels != features or shape.prefix_tokens:
        return None
    channel_dim, activation = CHANNEL_DIMS[shape.layout], None
    source = find_source(trace, value, channel_dim, pool)
    maker = trace.maker(value)
    if source is None and maker is not None and maker.name == "slice":  # tokens without those in front
        shape = map_shape(trace, maker.inputs[0]) or shape
        source = find_source(trace, maker.inputs[0], channel_dim, pool)
    elif source is None and activation_of(maker) in PLAIN_ACTIVATIONS:
        assert maker is not None
        activation, source = activation_of(maker), find_source(trace, maker.inputs[0], channel_dim, maker.module)
    if source is None:
        return None
    size = shape.channels, shape.height, shape.width
    return TapPoint(stage, source.module, (source,), None, shape.layout, shape.prefix_tokens, *size, activation)


def _last(trace: Trace, value: int, point: TapPoint) -> TapPoint | None:
    """What the norms and activations that follow the last stage's map ``value`` make of it, as far as hooks see it."""
    source = point.raw
    while len(readers := trace.users.get(value, [])) == 1:
        reader = readers[0]
        if not activation_of(reader) and not any(norm in reader.name for norm in NORMS):
            break
        value = reader.outputs[0]
        source = find_source(trace, value, CHANNEL_DIMS[point.layout], reader.module) or source
    return _raw(point, source)


def _raw(point: TapPoint, source: Source | None) -> TapPoint | None:
    """A tap on ``source`` alone, a value like the stage's, as it is."""
    if source is None:
        return None
    return replace(point, name=source.module, sources=(source,), order=None, activation=None, raw=None, activated=None)


def _input_of(trace: Trace, op: Op, value: int) -> Source | None:
    """The tensor that enters the module of a matrix product, through the views that the product itself takes."""
    while True:
        dim = 1 if op.name == "convolution" else -1
        source = find_source(trace, value, dim, op.module)
        if source is not None:
            return source
        maker = trace.maker(value)
        if maker is None or maker.module != op.module:
            return None
        value = maker.inputs[0]
