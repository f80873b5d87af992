"""Convolutional networks as graphs (torch.fx): split at the global pooling, or dilated."""

import operator
from collections.abc import Iterable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import fx, nn

from camworker.errors import NetworkError, first_line
from camworker.schemas import Pooling

_PROBE: Final = 256  # side, in pixels, of the input with which strides are measured
_SIDE: Final = "side"  # key, in a node's metadata, of the side of its feature map


def trace(model: nn.Module) -> fx.Graph:
    """Return the graph of a model, which is put in eval mode.

    Code outside of its layers that runs in training only is not part of the graph.

    Raises:
        NetworkError: The code of the model cannot be traced.
    """
    try:
        return fx.Tracer().trace(model.eval())
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise NetworkError(f"refused: its code cannot be traced: {error}") from error


def cut(
    model: nn.Module, graph: fx.Graph, pooling: Pooling
) -> tuple[fx.GraphModule, fx.GraphModule, nn.Linear | None]:
    """Split a network before its global pooling.

    Args:
        model: The network.
        graph: Its graph.
        pooling: "max" replaces the average of the network by the maximum.

    Returns:
        The two halves, which share the layers of the model: images to features, and features to logits. And
        the linear layer in the second half, None if there is none.

    Raises:
        NetworkError: There is no global average pooling, or the logits do not depend on it alone.
    """
    pool = _last(node for node in graph.nodes if _is_global_average(model, node))
    if pool is None:
        raise NetworkError("refused: it has no global average pooling")
    (pooled,) = pool.all_input_nodes
    features, logits = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copies[node] = features.node_copy(node, copies.__getitem__)
        if node is pooled:
            break
    features.output(copies[pooled])

    copies = {pooled: logits.placeholder("features_BCHW")}
    linear: nn.Linear | None = None
    after = list(graph.nodes)
    for node in after[after.index(pool) :]:
        if any(source not in copies for source in node.all_input_nodes):
            raise NetworkError("refused: its logits depend on more than its pooled features")
        if node is pool and pooling == "max":
            copies[node] = logits.call_function(
                torch.amax, (copies[pooled], (2, 3)), {"keepdim": _keeps_axes(node)}
            )
        else:
            copies[node] = logits.node_copy(node, copies.__getitem__)
        layer = _layer(model, node)
        linear = layer if isinstance(layer, nn.Linear) else linear
    return fx.GraphModule(model, features), fx.GraphModule(model, logits), linear


def dilate(model: nn.Module, graph: fx.Graph, output_stride: int) -> None:
    """Make the feature map of a network finer, in place, by dilating layers instead of striding.

    The positions that a strided layer skipped are computed, and every later kernel is dilated accordingly
    (the "a trous" algorithm; Chen et al., DeepLab, 2015). Values at the old positions do not change, unless
    a layer uses the whole map (squeeze and excitation), which has more positions then.

    Args:
        model: The network.
        graph: Its graph.
        output_stride: Input pixels per cell of the feature map.

    Raises:
        NetworkError: A layer cannot be dilated.
    """
    _record_sides(model, graph)
    for node in graph.nodes:
        layer = _layer(model, node)
        if not isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            continue
        before, after = _stride(node.all_input_nodes[0]), _stride(node)
        kernel, stride, padding, spread = (
            _one(getattr(layer, name, 1)) for name in ("kernel_size", "stride", "padding", "dilation")
        )
        if after <= output_stride or (kernel == 1 and stride == 1):
            continue
        factor = max(1, before // output_stride)
        even = 2 * padding != spread * (kernel - 1)
        if output_stride % min(before, output_stride) or isinstance(layer, nn.AvgPool2d) or even:
            raise NetworkError(
                f"cannot be dilated: {node.target} is {type(layer).__name__} of {kernel}x{kernel}"
            )
        layer.stride = (max(1, output_stride // before),) * 2
        layer.dilation = (spread * factor,) * 2
        layer.padding = (padding * factor,) * 2


class _Sides(fx.Interpreter):
    """Runs a graph and records the width of each node's feature map in the node's metadata."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor) and result.ndim:
            n.meta[_SIDE] = result.shape[-1]
        return result


@torch.inference_mode()
def _record_sides(model: nn.Module, graph: fx.Graph) -> None:
    try:
        _Sides(fx.GraphModule(model, graph)).run(torch.zeros(1, 3, _PROBE, _PROBE))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise NetworkError(
            f"cannot be dilated: it does not run at {_PROBE} pixels, with which strides are measured: "
            f"{first_line(error)}"
        ) from error


def _is_global_average(model: nn.Module, node: fx.Node) -> bool:
    layer = _layer(model, node)
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return _one(layer.output_size) == 1
    if node.target is F.adaptive_avg_pool2d:
        return _one(node.args[1] if len(node.args) > 1 else node.kwargs["output_size"]) == 1
    if node.target in ("mean", torch.mean):
        axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        return isinstance(axes, Iterable) and sorted(axis % 4 for axis in axes) == [2, 3]  # type: ignore[operator]
    return False


def _keeps_axes(pool: fx.Node) -> bool:
    """Return whether the pooling gives [B, C, 1, 1] and not [B, C]."""
    if pool.target not in ("mean", torch.mean):
        return True
    return bool(pool.args[2] if len(pool.args) > 2 else pool.kwargs.get("keepdim", False))


def _layer(model: nn.Module, node: fx.Node) -> nn.Module | None:
    return model.get_submodule(str(node.target)) if node.op == "call_module" else None


def _stride(node: fx.Node) -> int:
    side: int = node.meta[_SIDE]
    if _PROBE % side:
        raise NetworkError(f"cannot be dilated: {node.target} reduces {_PROBE} pixels to {side} cells")
    return _PROBE // side


def _one(value: object) -> int:
    """Return the side of a square size, 0 for one that is not square."""
    values = set(value) if isinstance(value, tuple | list) else {value}
    if len(values) != 1 or not isinstance(only := values.pop(), int):
        return 0
    return operator.index(only)


def _last(nodes: Iterable[fx.Node]) -> fx.Node | None:
    return next(reversed(list(nodes)), None)
