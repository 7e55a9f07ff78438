"""Where can a network be cut? Answered by its graph, not by a table.

The network is traced once (torch.fx). A node that post-dominates the input, that is, lies on every
path from input to output, is a place where one tensor carries everything onward: a legal cut. Of
these, one is kept per block, after its activation and before any pooling, and it is named as the
network names the block. The graph is then split at the cuts into a chain of segments, so that a
prefix is the first k segments, a suffix the rest, and no layer exists twice.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from topwork.errors import BackboneError
from topwork.records import Cut

_WEIGHTY_FUNCTIONS = {
    torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose2d,
    nn.functional.linear, torch.matmul, torch.bmm, torch.einsum,
}  # fmt: skip
"""Functions that mix values across channels or space; a network may call them without a module
(weight-standardised convolutions do)."""

_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)
"""Modules that change nothing in inference: the place is the one before them, and is named after that."""


@dataclass(frozen=True)
class Chain:
    """A network as a chain of segments; segment k ends at cut k, the last one at the output."""

    segments: tuple[fx.GraphModule, ...]  # one more than cuts
    cuts: tuple[Cut, ...]
    params: int  # of the whole network
    macs: int


def chain(network: nn.Module, size_px: int) -> Chain:
    """Split a network at every cut. Shapes and costs are those of one (3, size_px, size_px) image.

    The segments share the network's parameters and buffers. The image is computed: torch's fake tensors
    give the same shapes, but took five times as long (bench/LOG.md). Raises BackboneError where the graph
    cannot be traced or has no cut.
    """
    network.eval()
    graph_module = _trace(network)
    measured = _Measured(_apart(network), graph_module.graph)
    try:
        with torch.no_grad(), measured.counter:
            measured.run(torch.zeros(1, 3, size_px, size_px))
    except Exception as error:
        raise BackboneError(
            f"{type(network).__name__} does not run on images of {size_px} x {size_px} px: {_cause(error)}"
            f" in {measured.at}; choose another --size (its own is the default)"
        ) from error
    nodes = _cut_nodes(graph_module, _stages(network))
    if not nodes:
        raise BackboneError(
            f"{type(network).__name__} has no place where one feature map carries everything onward;"
            " topwork cuts convolutional networks (torchvision's, and timm's as timm:NAME)"
        )
    segments = _split(graph_module, [node for node, _ in nodes])
    return _counted(segments, nodes)


def _trace(network: nn.Module) -> fx.GraphModule:
    tracer = _tracer(network)
    try:
        graph = tracer.trace(network)
    except Exception as error:  # fx raises whatever the network's own code raises on a proxy
        raise BackboneError(f"{type(network).__name__} cannot be traced by torch.fx: {_cause(error)}") from error
    graph_module = fx.GraphModule(tracer.root, graph)
    graph_module.graph.eliminate_dead_code()  # branches that only training uses, such as auxiliary heads
    graph_module.recompile()
    return graph_module


def _tracer(network: nn.Module) -> fx.Tracer:
    """A tracer that leaves whole what the network's library says cannot be traced into."""
    leaves: tuple[type[nn.Module], ...] = ()
    functions: tuple[object, ...] = ()
    if any(type(module).__module__.startswith("timm.") for module in network.modules()):
        from timm.layers import get_notrace_functions, get_notrace_modules  # noqa: PLC0415 (2.8 s to import)

        leaves, functions = tuple(get_notrace_modules()), tuple(get_notrace_functions())  # type: ignore[no-untyped-call]

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, leaves) or super().is_leaf_module(m, module_qualified_name)

    return Tracer(autowrap_functions=functions)  # type: ignore[arg-type]


def _apart(network: nn.Module) -> nn.Module:
    """A copy with the same tensors: what its modules keep of a run (timm's biases of attention) stays in it.

    The network gets its weights later, and would go on with biases that were computed from others.
    """
    tensors: dict[int, Any] = {id(t): t for t in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, tensors)


class _Measured(fx.Interpreter):
    """Runs a graph once and leaves on every node the shape of the float tensor that it gives, and its operations.

    (torch's own ShapeProp prints a traceback where an input is too small, and hides the reason.)
    """

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, graph=graph)
        self.extra_traceback = False  # the first line of what is raised is shown to the user
        self.counter = FlopCounterMode(display=False)
        self.at = "the input"  # how far it came

    def run_node(self, n: fx.Node) -> Any:
        self.at = _module_path(n) or n.name
        before = self.counter.get_total_flops()
        result = super().run_node(n)
        n.meta["flops"] = self.counter.get_total_flops() - before
        is_float = isinstance(result, torch.Tensor) and result.is_floating_point()
        n.meta["shape"] = tuple(result.shape) if is_float else ()
        return result


def _cut_nodes(graph_module: fx.GraphModule, stages: set[str]) -> list[tuple[fx.Node, str]]:
    """The cuts in order, each with its name."""
    modules = dict(graph_module.named_modules())
    places = [
        node
        for node in _post_dominators(graph_module.graph)
        if _is_map(node) and not (node.op == "call_module" and isinstance(modules[str(node.target)], _NOTHING))
    ]
    weighty = _weighty_between(graph_module, places)
    stretches: list[list[fx.Node]] = []  # places from one with weights to the last before the next weights
    stretch: list[fx.Node] = []
    for i, place in enumerate(places):
        if weighty[i] or stretch:
            stretch.append(place)
        last = i + 1 == len(places)
        # The block goes on while only normalisation, activation or dropout follow.
        if stretch and (last or weighty[i + 1] or _size(places[i + 1]) != _size(place)):
            stretches.append(stretch)
            stretch = []
    if stretches and not weighty[len(places)]:
        stretches.pop()  # nothing is learnt after it: it is the old task's classifier itself, as in SqueezeNet
    per_block: dict[str, fx.Node] = {}
    for stretch in reversed(stretches):
        # The last place of each block wins. A stretch may end in the next block's own normalisation, as in
        # pre-activation ResNets; then it is cut where its own block ends.
        for place in reversed(stretch):
            name = _block(place, stages)
            if name not in per_block:
                per_block[name] = place
                break
    return [(place, name) for name, place in reversed(per_block.items())]


def _post_dominators(graph: fx.Graph) -> list[fx.Node]:
    """Nodes that lie on every path from the input to the output, in order, without the input itself.

    In topological order, node v is one exactly if no edge that carries data of the image jumps over
    it: every node before v has its last use at v or before.
    """
    nodes = list(graph.nodes)
    position = {node: i for i, node in enumerate(nodes)}
    carries: set[fx.Node] = set()
    furthest = -1  # the latest position at which anything seen so far is still used
    found: list[fx.Node] = []
    for i, node in enumerate(nodes):
        if node.op == "placeholder" or any(arg in carries for arg in node.all_input_nodes):
            if node.op not in {"placeholder", "output"} and furthest <= i:
                found.append(node)
            carries.add(node)
            furthest = max(furthest, *(position[user] for user in node.users), -1)
    return found


def _is_map(node: fx.Node) -> bool:
    """Maps of a square image are square; of (b, h, w, channels), as some networks lay them out, this one is none."""
    shape = node.meta["shape"]
    return len(shape) == 4 and shape[2] == shape[3]


def _size(node: fx.Node) -> tuple[int, int]:
    height, width = node.meta["shape"][2:]
    return height, width


def _weighty_between(graph_module: fx.GraphModule, places: Sequence[fx.Node]) -> list[bool]:
    """For each place: does anything with weights lie after the place before it, up to and with it?

    One more entry than places: the last one is about what follows the last place.
    """
    modules = dict(graph_module.named_modules())
    ends, result, seen = set(places), [], False
    for node in graph_module.graph.nodes:
        if node.op == "call_module":
            seen = seen or any(p.dim() >= 2 for p in modules[str(node.target)].parameters())
        elif node.op == "call_function":
            seen = seen or node.target in _WEIGHTY_FUNCTIONS
        if node in ends:
            result.append(seen)
            seen = False
    return [*result, seen]


def _stages(network: nn.Module) -> set[str]:
    """Names of modules that only string blocks together, and so are no block themselves.

    Sequential and ModuleList are; so is a custom stage that holds, directly or in such a container,
    two or more blocks of one class with at least two weighted layers each (timm's RegStage, ConvNeXtStage).
    """
    found = {""}
    for name, module in network.named_modules():
        children: list[nn.Module] = []
        for child in module.children():
            children.extend(child.children() if type(child) in {nn.Sequential, nn.ModuleList} else [child])
        alike = Counter(type(child) for child in children if _weighted_layers(child) >= 2)
        strings_layers = isinstance(module, (nn.Sequential, nn.ModuleList)) and not _is_one_layer(module)
        if strings_layers or any(n >= 2 and kind is not nn.Sequential for kind, n in alike.items()):
            found.add(name)
    return found


def _is_one_layer(module: nn.Module) -> bool:
    """A Sequential of convolution, normalisation and activation is one layer to a reader."""
    return _weighted_layers(module) <= 1


def _weighted_layers(module: nn.Module) -> int:
    return sum(any(p.dim() >= 2 for p in m.parameters(recurse=False)) for m in module.modules())


def _block(node: fx.Node, stages: set[str]) -> str:
    """The outermost module around a node that is a block; else the innermost module; else the node's name."""
    path = _module_path(node)
    parts = path.split(".")
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        if name and name not in stages:
            return name
    return path or node.name


def _module_path(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack))) if stack else ""


def _split(graph_module: fx.GraphModule, ends: Sequence[fx.Node]) -> tuple[fx.GraphModule, ...]:
    """One GraphModule per stretch between cuts; each takes and gives one tensor (the last: the output)."""
    output = next(n for n in graph_module.graph.nodes if n.op == "output")
    entry = next(n for n in graph_module.graph.nodes if n.op == "placeholder")
    segments = []
    for end in [*ends, output]:
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {entry: graph.placeholder("x")}
        for node in _needed(end, entry):
            copies[node] = graph.node_copy(node, copies.__getitem__)
        if end is not output:
            graph.output(copies[end])
        graph.lint()
        segments.append(fx.GraphModule(graph_module, graph, class_name="Segment"))
        entry = end
    return tuple(segments)


def _needed(end: fx.Node, entry: fx.Node) -> list[fx.Node]:
    """What `end` is computed from, stopping at `entry`, in order."""
    wanted, todo = {end}, [end]
    while todo:
        for arg in todo.pop().all_input_nodes:
            if arg is not entry and arg not in wanted:
                wanted.add(arg)
                todo.append(arg)
    return [node for node in end.graph.nodes if node in wanted]


def _counted(segments: Sequence[fx.GraphModule], nodes: Sequence[tuple[fx.Node, str]]) -> Chain:
    """The chain with what everything up to each cut, and the whole, weighs and computes."""
    params: set[int] = set()
    n_params = macs = 0
    cuts: list[Cut] = []
    for i, segment in enumerate(segments):
        macs += sum(node.meta.get("flops", 0) for node in segment.graph.nodes) // 2
        for parameter in segment.parameters():
            if id(parameter) not in params:
                params.add(id(parameter))
                n_params += parameter.numel()
        if i < len(nodes):
            node, name = nodes[i]
            _, channels, height, width = node.meta["shape"]
            cuts.append(Cut(name, channels, height, width, n_params, macs))
    return Chain(tuple(segments), tuple(cuts), n_params, macs)


def _cause(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
