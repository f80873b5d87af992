"""Taps: feature maps of earlier stages, from the same forward pass as the map before the pooling.

The features of a network are traced (torch.fx). Of the nodes through which all of the computation passes (cut
vertices), the last one at stride 8 and the last one at stride 16 are chosen, except those that only pointwise
layers separate from the map before the pooling. From there the walk goes back over pointwise layers and
padding to the node with the fewest channels: in EfficientNet-Lite0 the sums that end the stages blocks[2] and
blocks[4]. Nodes have names made from the modules that they belong to, so that a node that was chosen in the
network as it was built is found in its dilated twin.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

import torch
from torch import fx, nn

from camworker.errors import NetworkError, first_line
from camworker.networks.traced_features import TracedFeatures, named_nodes, operation
from camworker.refinement import MAX_DEEP_CHANNELS, MAX_TAP_CHANNELS

FINE_STRIDE: Final = 8
DEEP_STRIDE: Final = 16

_POINTWISE_LAYERS: Final = (nn.BatchNorm2d, nn.LayerNorm, nn.Linear, nn.Dropout, nn.Dropout2d, nn.Identity)
# Names of functions and methods, without the trailing "_" and the leading "i" of those that work in place.
_ARITHMETIC: Final = {"add", "sub", "mul", "truediv", "neg", "clamp", "linear", "batch_norm", "layer_norm"}
_UNCHANGED: Final = {"permute", "contiguous", "float", "to", "dropout"}
_ACTIVATIONS: Final = {
    *("relu", "relu6", "leaky_relu", "elu", "celu", "silu", "gelu", "mish", "softplus"),
    *("sigmoid", "tanh", "hardtanh", "hardswish", "hardsigmoid"),
}
_POINTWISE: Final = frozenset(_ARITHMETIC | _UNCHANGED | _ACTIVATIONS)
_PADDING: Final = frozenset({"pad", "pad_same"})
_ACTIVATION_LAYERS: Final = "torch.nn.modules.activation"


@dataclass(frozen=True)
class Tap:
    """A node of a network whose values are feature maps.

    Attributes:
        node: Name of the node, from the modules that it belongs to.
        channels: Number of its channels.
        stride: Input pixels per cell, rounded to a power of two.
        channels_last: Whether its values are [B, h, w, C].
    """

    node: str
    channels: int
    stride: int
    channels_last: bool = False


@dataclass(frozen=True)
class Taps:
    """The feature maps that refined maps are made from.

    Attributes:
        fine: The last one at stride 8.
        deep: The last one at stride 16 that is not the map before the pooling; None if there is none.
    """

    fine: Tap
    deep: Tap | None

    @property
    def all(self) -> tuple[Tap, ...]:
        """The taps that there are: fine, then deep."""
        return (self.fine,) if self.deep is None else (self.fine, self.deep)


@torch.inference_mode()
def find_taps(features: TracedFeatures, input_size: int, undilated: TracedFeatures | None = None) -> Taps:
    """Choose the taps of a network.

    Args:
        features: The network.
        input_size: Side of the input with which strides are measured, in pixels.
        undilated: For a dilated network: the same network as it is built without dilation, in which the nodes
            are chosen; its parameters may be on the meta device.

    Raises:
        NetworkError: The network does not run, or has no such node at stride 8.
    """
    try:
        measured = _Measured.of(features, input_size)
        plain = measured if undilated is None else _Measured.of(undilated, input_size)
    except Exception as error:  # Of foreign code, as in `TracedFeatures.of`.
        raise NetworkError(f"it does not run at input size {input_size}: {first_line(error)}") from error
    found = plain.last_at(FINE_STRIDE), plain.last_at(DEEP_STRIDE)
    fine, deep = (None if name is None else measured.tap(name) for name in found)
    if fine is None:
        raise NetworkError(
            f"no feature map at stride {FINE_STRIDE} has all of the computation pass through it"
        )
    return Taps(fine, deep)


def with_taps(features: TracedFeatures, taps: Taps) -> fx.GraphModule:
    """Return a module that maps images to a tuple: the features, the fine map, and the deep map if any.

    The module shares all layers and parameters with the network. Of the channels of a tap only the first are
    kept, see `MAX_TAP_CHANNELS` and `MAX_DEEP_CHANNELS`.

    Args:
        features: The network.
        taps: The taps.
    """
    tapped = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    result = tapped.graph_copy(features.graph, copies)
    nodes = named_nodes(features.graph)
    maps = []
    for tap, most in zip(taps.all, (MAX_TAP_CHANNELS, MAX_DEEP_CHANNELS), strict=False):
        node = copies[nodes[tap.node]]
        if tap.channels_last:
            node = tapped.call_method("permute", (node, 0, 3, 1, 2))
        if tap.channels > most:
            node = tapped.call_method("narrow", (node, 1, 0, most))
        maps.append(node)
    tapped.output((result, *maps))
    return fx.GraphModule(features.root, tapped)


class _Recorder(fx.Interpreter):
    """Runs a graph and records the shape of each tensor, and which nodes hold floating-point numbers."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(root, graph=graph)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.data: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.shapes[n] = tuple(result.shape)
        if _holds_floats(result):
            self.data.add(n)
        return result


def _holds_floats(value: object) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_holds_floats, value))
    return isinstance(value, torch.Tensor) and value.is_floating_point()


@dataclass(frozen=True)
class _Measured:
    """The graph of a network with the shapes of its values.

    Attributes:
        nodes: The nodes by name, in the order of computation.
        shapes: Shape of the value of each node that is a tensor.
        path: Those nodes whose values depend on the image and on which the result depends, in order.
        cuts: Those of them through which all of the computation passes, in order.
    """

    root: nn.Module
    input_size: int
    nodes: Mapping[str, fx.Node]
    shapes: Mapping[fx.Node, tuple[int, ...]]
    path: list[fx.Node]
    cuts: list[fx.Node] = field(default_factory=list)

    @classmethod
    def of(cls, features: TracedFeatures, input_size: int) -> Self:
        root, graph = features.root, features.graph
        device = next(root.parameters()).device
        recorder = _Recorder(root, graph)
        recorder.run(torch.zeros(1, 3, input_size, input_size, device=device))
        path = _path(graph, recorder.data)
        return cls(root, input_size, named_nodes(graph), recorder.shapes, path, _cuts(path))

    def last_at(self, stride: int) -> str | None:
        """Return the name of the node to tap at a stride, None if there is none."""
        pooled = {self.cuts[index] for index in self._before(len(self.cuts) - 1)}
        at = [
            n for n, node in enumerate(self.cuts) if node not in pooled and self._channel_axis(node, stride)
        ]
        if not at:
            return None
        chosen = min(
            (n for n in self._before(at[-1]) if n in at and not self._pads(self.cuts[n])),
            key=lambda n: (self._channels(self.cuts[n], stride), -n),
            default=None,
        )
        return (
            None if chosen is None else {node: name for name, node in self.nodes.items()}[self.cuts[chosen]]
        )

    def tap(self, name: str) -> Tap | None:
        """Describe a node; None if its values are no feature map."""
        if name not in self.nodes:
            raise NetworkError(f"the dilated network has no node {name}")
        node = self.nodes[name]
        for stride in (DEEP_STRIDE, FINE_STRIDE):
            if axis := self._channel_axis(node, stride):
                return Tap(name, self.shapes[node][axis], stride, axis == 3)
        return None

    def _channels(self, node: fx.Node, stride: int) -> int:
        return self.shapes[node][self._channel_axis(node, stride)]

    def _channel_axis(self, node: fx.Node, stride: int) -> int:
        """Return 1 or 3 if the value of a node is a map at a stride, [B, C, h, w] or [B, h, w, C], else 0."""
        shape = self.shapes.get(node, ())
        if len(shape) != 4:
            return 0
        layouts = {1: shape[2:], 3: shape[1:3]}
        fitting = [axis for axis, sides in layouts.items() if at_stride(sides, self.input_size, stride)]
        square = [axis for axis in fitting if len(set(layouts[axis])) == 1]
        return next(iter((*square, *fitting)), 0)

    def _before(self, index: int) -> Iterable[int]:
        """Yield the indices of a cut vertex and of those that only pointwise layers separate from it."""
        yield index
        while index > 0 and all(map(self._pointwise, self._between(index))):
            index -= 1
            yield index

    def _between(self, index: int) -> list[fx.Node]:
        """Return the nodes after the cut vertex before this one, up to and with this one."""
        first, last = (self.path.index(self.cuts[n]) for n in (index - 1, index))
        return self.path[first + 1 : last + 1]

    def _pointwise(self, node: fx.Node) -> bool:
        if node.op == "output" or self._pads(node):
            return True
        if node.op != "call_module":
            return operation(node) in _POINTWISE
        layer = self.root.get_submodule(str(node.target))
        if isinstance(layer, nn.Conv2d):
            return all(value == (1, 1) for value in (layer.kernel_size, layer.stride))
        if type(layer).__module__ == _ACTIVATION_LAYERS:
            return not isinstance(layer, nn.MultiheadAttention)
        return isinstance(layer, _POINTWISE_LAYERS)

    def _pads(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return type(self.root.get_submodule(str(node.target))).__module__ == "torch.nn.modules.padding"
        return operation(node) in _PADDING


def at_stride(sides: Iterable[int], input_size: int, stride: int) -> bool:
    """Return whether all sides of a map, in cells, fit a stride rounded to a power of two."""
    return all(side > 0 and round(math.log2(input_size / side)) == math.log2(stride) for side in sides)


def _path(graph: fx.Graph, data: set[fx.Node]) -> list[fx.Node]:
    """Return the nodes between the image and the result, without sizes and other numbers, in order."""
    nodes = [node for node in graph.nodes if node in data]
    after: set[fx.Node] = {node for node in nodes if node.op == "placeholder"}
    for node in nodes:
        if after.intersection(node.all_input_nodes):
            after.add(node)
    before: set[fx.Node] = {node for node in nodes if node.op == "output"}
    for node in reversed(nodes):
        if node in before:
            before.update(node.all_input_nodes)
    return [node for node in nodes if node in after and node in before]


def _cuts(path: list[fx.Node]) -> list[fx.Node]:
    """Return the nodes that no edge jumps over, in order."""
    places = {node: place for place, node in enumerate(path)}
    cuts, furthest = [], 0
    for place, node in enumerate(path):
        if furthest <= place:
            cuts.append(node)
        furthest = max([furthest, *(places[user] for user in node.users if user in places)])
    return cuts
