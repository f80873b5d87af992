"""The features of a network as a graph (torch.fx), whose nodes are named after the modules they belong to."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from timm.layers import get_notrace_functions, get_notrace_modules
from torch import fx, nn

from camworker.errors import NetworkError, first_line


@dataclass(frozen=True)
class TracedFeatures:
    """The part of a network that maps images to the input of the pooling, as a graph.

    Attributes:
        root: The module that holds the layers.
        graph: The graph.
    """

    root: nn.Module
    graph: fx.Graph

    @classmethod
    def of(cls, features: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """Trace a module in eval mode, or a method of one.

        Raises:
            NetworkError: It is neither, or its code cannot be traced.
        """
        if isinstance(features, fx.GraphModule):
            return cls(features, features.graph)
        root, method = getattr(features, "__self__", features), getattr(features, "__name__", "forward")
        if not isinstance(root, nn.Module):
            raise NetworkError("its features are not computed by a method of a module")
        # Foreign code raises nearly any error. Each means that it cannot be traced.
        try:
            return cls(root, _Tracer(method).trace(root))
        except Exception as error:
            raise NetworkError(f"its features cannot be traced: {first_line(error)}") from error


class _Tracer(fx.Tracer):
    """Traces a method of a module, and does not look into what timm does not trace or into single layers."""

    def __init__(self, method: str) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.traced_func_name = method
        self._leaves = tuple(get_notrace_modules())

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, self._leaves) or super().is_leaf_module(m, module_qualified_name):
            return True
        # A layer with parameters of its own. If it was traced, the graph would own its buffers a second time.
        own, total = (
            len(list(m.parameters(recurse))) + len(list(m.buffers(recurse))) for recurse in (False, True)
        )
        return 0 < own == total


def named_nodes(graph: fx.Graph) -> dict[str, fx.Node]:
    """Return the nodes of a graph by module and operation, and by number where several share them."""
    counts: Counter[str] = Counter()
    nodes = {}
    for node in graph.nodes:
        if node.op == "call_module":
            name = str(node.target)
        else:
            stack = list(node.meta.get("nn_module_stack", {}).values())
            name = ".".join([*(stack[-1][:1] if stack else ()), operation(node) or node.name])
        nodes[f"{name}_{counts[name]}" if counts[name] else name] = node
        counts[name] += 1
    return nodes


def operation(node: fx.Node) -> str:
    """Return the name of the function or method of a node, the same if it works in place; "" for others."""
    if node.op not in ("call_function", "call_method"):
        return ""
    name = str(getattr(node.target, "__name__", node.target)).rstrip("_")
    return name.removeprefix("i") if name in ("iadd", "isub", "imul", "itruediv") else name
