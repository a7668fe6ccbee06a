"""A backbone as three traced programs that share saved activations: forward pass, pullback (vjp) and pushforward (jvp).

The programs are traced once for each input shape. The pushforward is forward mode on the saved activations, so it does not
repeat the forward pass; `torch.func.jvp` does. Parameters are arguments of the programs, so the programs serve every trial of an
architecture. Without a compiler, the programs call the same kernels in the same order as autograd.
"""

import operator
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.autograd import forward_ad
from torch.func import functional_call, functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from trainables.engine.batch_norm import FastTangents, LocalStatistics
from trainables.engine.draws import TRAINING, Draws, Key, Share, no_other_draws
from trainables.engine.frozen_norms import FrozenNorms
from trainables.engine.numerics import autocasting

aten = torch.ops.aten
make_dual: Callable[..., Tensor] = forward_ad.make_dual
unpack_dual: Callable[..., tuple[Tensor, Tensor | None]] = forward_ad.unpack_dual
Program = Callable[..., Sequence[Tensor]]
Parameters = dict[str, Tensor]


class Programs(NamedTuple):
    """The programs for one input shape. Their first arguments are parameters, buffers and images."""

    forward: Program
    """Trained parameters, frozen parameters, buffers, images, step, seed, first -> the features, then the saved activations that
    the other two programs need. `first` is the place of the first image in the whole batch, () int64."""
    pullback: Program
    """The same, saved activations, cotangent -> a gradient for each trained parameter."""
    pushforward: Program
    """The same, saved activations, a tangent for each trained parameter -> the tangent of the features."""


class Linearization:
    """One forward pass of a backbone and its derivative at that point. `features` are (B, D), without an autograd graph.

    Args:
        programs: of the backbone.
        parameters: of the backbone, the trained ones first, then the frozen ones.
        buffers: of the backbone.
        images: (B, C, H, W).
        place: what random numbers depend on, as Draws.place gives it.
    """

    def __init__(
        self,
        programs: Programs,
        parameters: list[Tensor],
        buffers: list[Tensor],
        images: Tensor,
        place: tuple[Key, Tensor],
    ) -> None:
        self._programs, self._parameters, self._buffers = programs, parameters, buffers
        self._images, self._place = images, [*place[0], place[1]]
        self.features, *self._saved = self._run_forward(buffers)

    @torch.no_grad()
    def pullback(self, cotangent: Tensor, besides: Sequence[Tensor] = ()) -> list[Tensor]:
        """The gradient of <cotangent, features> for each trained parameter, then `besides` unchanged; cotangent (B, D).

        A ShardedLinearization reduces `besides` over workers together with the gradients.
        """
        return [*self._programs.pullback(*self._point(), *self._saved_activations(), cotangent), *besides]

    @torch.no_grad()
    def pushforward(self, tangents: Sequence[Tensor]) -> Tensor:
        """The derivative of the features, (B, D), along `tangents`, one for each trained parameter."""
        return self._programs.pushforward(*self._point(), *self._saved_activations(), *tangents)[0]

    def release(self) -> None:
        """Frees the saved activations. The next pullback or pushforward recomputes them with a forward pass."""
        self._saved = []

    def _saved_activations(self) -> list[Tensor]:
        if not self._saved:
            # Copies of the buffers, because the first pass has already updated the running statistics.
            _, *self._saved = self._run_forward([buffer.clone() for buffer in self._buffers])
        return self._saved

    @torch.no_grad()
    def _run_forward(self, buffers: list[Tensor]) -> Sequence[Tensor]:
        return self._programs.forward(*self._parameters, *buffers, self._images, *self._place)

    def _point(self) -> list[Tensor]:
        return [*self._parameters, *self._buffers, self._images, *self._place]


class Linearizer:
    """Makes linearizations and caches the programs for each input shape.

    Args:
        autocast: the type that torch.autocast uses inside the backbone; features, gradients and tangents stay float32. None
            computes in the type of the parameters.
        compiled_batch_sizes: batches of these sizes run programs compiled by torch.compile; other batches run them uncompiled.
    """

    def __init__(self, autocast: torch.dtype | None = None, compiled_batch_sizes: Container[int] = ()) -> None:
        self.autocast = autocast
        self._compiled_batch_sizes = compiled_batch_sizes
        self._programs: dict[tuple[Any, ...], Programs] = {}
        self._draws = True
        """Whether the backbone draws random numbers, as far as its trace is known."""

    def __call__(
        self,
        backbone: nn.Module,
        parameters: list[Tensor],
        buffers: list[Tensor],
        images: Tensor,
        num_images: int | None = None,
        pushforward: bool = True,
        key: Key | None = None,
        stream: int = TRAINING,
    ) -> Linearization:
        """Runs the forward pass.

        Args:
            backbone: the architecture, in train mode. Its frozen parameters, which do not require a gradient, are the same in all
                calls, and their values are read. The values of its other parameters and of its buffers are not read.
            parameters: a value for each trained parameter of the backbone, in the backbone's order.
            buffers: a value for each buffer, likewise; BatchNorm updates its running statistics among them in place.
            images: (B, C, H, W).
            num_images: number of images of the whole batch if `images` are a worker's share of the batch; None if they are all.
            pushforward: whether the result has a pushforward. Without one, tracing is faster, and nothing is saved for it.
            key: what the backbone's random numbers depend on, such as the masks of dropout; None is the first step of seed 0.
            stream: of the random numbers, which are others on training batches and on meta batches.

        Raises:
            ValueError: when the backbone cannot be traced; see `trace`.
        """
        num_images = len(images) if num_images is None else num_images
        draws = Draws(key or Key.zero(images.device), stream, self._share(len(images), num_images))
        return self._run(backbone, parameters, buffers, images, pushforward, draws)

    def _run(
        self,
        backbone: nn.Module,
        parameters: list[Tensor],
        buffers: list[Tensor],
        images: Tensor,
        pushforward: bool,
        draws: Draws,
    ) -> Linearization:
        """As __call__, for the images of `draws.share`."""
        num_images = draws.share.total
        place = (*self._place(images, num_images), pushforward, draws.stream)
        frozen = [parameter.detach() for parameter in backbone.parameters() if not parameter.requires_grad]
        if place not in self._programs:
            statistics, drawn = self._statistics(len(images), num_images), draws.of(slice(0, len(images)))
            programs = trace(backbone, parameters, frozen, buffers, images, self.autocast, statistics, pushforward, drawn)
            self._draws = drawn.number > 0
            if num_images in self._compiled_batch_sizes:
                # Only the other two programs read the saved activations, so the compiler may choose their memory layout.
                forward = self._compiled(programs.forward, keep_output_stride=False)
                programs = Programs(forward, self._compiled(programs.pullback), self._compiled(programs.pushforward))
            self._programs[place] = programs
        return Linearization(self._programs[place], [*parameters, *frozen], buffers, images, draws.place())

    def features(
        self,
        backbone: nn.Module,
        parameters: Parameters,
        buffers: Parameters,
        images: Tensor,
        num_images: int,
        autocast: torch.dtype | None,
        key: Key | None = None,
        stream: int = TRAINING,
    ) -> Tensor:
        """Features (B, D) with an autograd graph, computed without the traced programs.

        `parameters` are the trained ones by name; the frozen ones are the backbone's own.
        """
        draws = Draws(key or Key.zero(images.device), stream, self._share(len(images), num_images))
        return self._features(backbone, parameters, buffers, images, autocast, draws)

    def _features(
        self,
        backbone: nn.Module,
        parameters: Parameters,
        buffers: Parameters,
        images: Tensor,
        autocast: torch.dtype | None,
        draws: Draws,
    ) -> Tensor:
        """As `features`, for the images of `draws.share`."""
        statistics = self._differentiable_statistics(len(images), draws.share.total)
        # The other kernels of attention have no second derivatives.
        with statistics, draws if self._draws else nullcontext(), sdpa_kernel(SDPBackend.MATH):
            return call_backbone(backbone, parameters | buffers, images, autocast)

    def _share(self, number: int, num_images: int) -> Share:
        """The images that this process has."""
        return Share(0, number, number)

    def _statistics(self, number: int, num_images: int) -> TorchFunctionMode:
        """The context that decides how BatchNorm is computed in the programs, for `number` images of `num_images`."""
        return FastTangents(of_share=number < num_images)

    def _differentiable_statistics(self, number: int, num_images: int) -> TorchFunctionMode:
        """The same for `features`, which can be differentiated any number of times."""
        return LocalStatistics(of_share=number < num_images)

    def _place(self, images: Tensor, num_images: int) -> tuple[Any, ...]:
        """Where the programs are cached. A trace is valid for one shape, memory layout, type and device, of a batch or a part."""
        return (images.shape, images.stride(), images.dtype, images.device, len(images) < num_images)

    def _compiled(self, program: Program, **options: Any) -> Program:
        from torch._dynamo.exc import TorchDynamoException  # here, because the compiler takes seconds to import

        compiled = torch.compile(program, fullgraph=True, dynamic=False, options=options)

        def run(*inputs: Tensor) -> Sequence[Tensor]:
            nonlocal compiled
            try:
                return compiled(*inputs)
            except TorchDynamoException as reason:
                # A first failure empties the container, so that there is one warning and later shapes are not compiled.
                if self._compiled_batch_sizes:
                    why = " ".join(str(reason).split("\n\n")[0].split())
                    warnings.warn(f"compute.compile: going on without a compiler, compilation failed: {why}", stacklevel=2)
                self._compiled_batch_sizes = ()
                compiled = program
                return compiled(*inputs)

        return run


def trace(
    backbone: nn.Module,
    parameters: list[Tensor],
    frozen: list[Tensor],
    buffers: list[Tensor],
    images: Tensor,
    autocast: torch.dtype | None,
    statistics: TorchFunctionMode,
    pushforward: bool,
    draws: Draws,
) -> Programs:
    """Traces the programs of `backbone`. The inputs serve as examples and are not changed.

    Frozen parameters have neither tangents nor gradients. So nothing is differentiated before the first trained layer, and
    nothing that comes before it is saved.

    Args:
        backbone: the architecture, in train mode; its frozen parameters do not require a gradient.
        parameters: a value for each trained parameter of the backbone.
        frozen: a value for each frozen parameter.
        buffers: a value for each buffer.
        images: (B, C, H, W), with the shape and memory layout that the programs are for.
        autocast: as in Linearizer.
        statistics: the context that decides how BatchNorm is computed.
        pushforward: whether forward mode is traced too; without it, that program takes no tangents and gives zeros.
        draws: with the key and the stream of the backbone's random numbers.

    Raises:
        ValueError: when the backbone draws random numbers in an unknown way, branches on computed values, uses an operator
            without forward mode, or holds tensors that are neither parameters nor buffers.
    """
    # Tracing such a tensor fails with an internal error of torch, so the tensor is named here.
    for name, module in backbone.named_modules():
        if tensors := [key for key, value in vars(module).items() if isinstance(value, Tensor)]:
            raise ValueError(f"the classifier's backbone: {name}.{tensors[0]} is a tensor, but neither parameter nor buffer")
    named = dict(backbone.named_parameters())
    names = [name for name in named if named[name].requires_grad] + [name for name in named if not named[name].requires_grad]
    names += [name for name, _ in backbone.named_buffers()]

    def features_of(parameters: list[Tensor], constants: list[Tensor], images: Tensor) -> Tensor:
        return call_backbone(backbone, dict(zip(names, [*parameters, *constants], strict=True)), images, autocast)

    def all_three(
        parameters: list[Tensor],
        constants: list[Tensor],
        images: Tensor,
        place: tuple[Key, Tensor],
        cotangent: Tensor,
        tangents: list[Tensor],
    ) -> tuple[Tensor, Sequence[Tensor], Tensor]:
        # Both modes in one pass over the same activations: dual tensors for forward mode, whose primals are autograd's leaves.
        leaves = [parameter.detach().requires_grad_() for parameter in parameters]
        with forward_ad.dual_level(), statistics, FrozenNorms(), draws.at(*place):
            duals = [make_dual(leaf, tangent) for leaf, tangent in zip(leaves, tangents, strict=True)] if tangents else leaves
            features, along = unpack_dual(features_of(duals, constants, images))
        gradients = torch.autograd.grad(features, leaves, cotangent, materialize_grads=True) if leaves else ()
        return features.detach(), gradients, torch.zeros_like(features) if along is None else along

    values, constants = [parameter.detach() for parameter in parameters], [*frozen, *buffers]
    # This run only finds the shape and type of the features, so any statistics do. It must not call a collective: a worker that
    # already has these programs does not run it, and the others would wait for that worker.
    with torch.no_grad(), LocalStatistics(of_share=True), no_other_draws():
        like_features = torch.zeros_like(features_of(values, [*frozen, *(buffer.clone() for buffer in buffers)], images))
    with no_word_of_torchscript():
        tangents = [torch.zeros_like(value) for value in values] if pushforward else []
        inputs = values, constants, images, draws.place(), like_features, tangents
        try:
            with sdpa_kernel(SDPBackend.MATH):  # the other kernels of attention have no forward mode
                traced = make_fx(all_three, tracing_mode="fake")(*inputs)
            programs = _split(traced, len(parameters) + len(constants))
            if programs is None:
                # A derivative is written into another tensor. Without such writes the programs are the same, with more copies.
                again = functionalize(traced)
                traced = make_fx(again, tracing_mode="fake")(*inputs)
                programs = _split(traced, len(parameters) + len(constants))
        except RuntimeError as reason:
            raise ValueError(_untraceable(str(reason).splitlines()[0])) from reason
    if programs is None:
        raise ValueError("the classifier's backbone cannot be traced: a derivative is written into another tensor")
    return programs


@contextmanager
def no_word_of_torchscript() -> Iterator[None]:
    """Torch's forward-mode rules are written in TorchScript; the user can do nothing about its deprecation."""
    with warnings.catch_warnings():
        # The filter takes any Warning, because the category differs between versions of torch.
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", Warning)
        yield


def check_forward_mode(backbone: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Runs the backbone in forward mode without computing anything, which takes a second where tracing takes up to a minute.

    What else keeps a backbone from being traced is not found.

    Args:
        backbone: it loses its values.
        image_shape: (C, H, W).

    Raises:
        ValueError: when an operator has no forward mode, with the words of `trace`.
    """
    nowhere = torch.device("meta")
    backbone.to(nowhere).train()
    draws = Draws(Key.zero(nowhere), TRAINING, Share(0, 2, 2))
    try:
        with (
            no_word_of_torchscript(),
            sdpa_kernel(SDPBackend.MATH),
            forward_ad.dual_level(),
            FastTangents(),
            FrozenNorms(),
            draws,
        ):
            state = dict(backbone.named_buffers())
            for name, parameter in backbone.named_parameters():
                value = parameter.detach()
                if parameter.requires_grad:
                    value = make_dual(value.requires_grad_(), torch.zeros_like(value))
                state[name] = value
            call_backbone(backbone, state, torch.zeros(2, *image_shape, device=nowhere), None)
    except Exception as reason:  # not all that works in a trial works without values
        said = str(reason).partition("\n")[0]
        if any(words in said for words in NO_FORWARD_MODE):
            raise ValueError(_untraceable(said)) from reason


def _untraceable(reason: str) -> str:
    """Why a backbone cannot be traced, from torch's message, and what is left to do."""
    if any(words in reason for words in NO_FORWARD_MODE):
        return (
            f"the classifier's backbone cannot be differentiated in forward mode: {reason}; allowed: "
            "bilevel.meta_gradient=finite_difference, double_backward or none, or another classifier"
        )
    return f"the classifier's backbone cannot be traced: {reason}"


NO_FORWARD_MODE = ("forward AD", "forward mode", "forward-mode")
"""Words of torch's messages about an operator that has no forward mode; the message names the operator."""


def call_backbone(backbone: nn.Module, state: dict[str, Tensor], images: Tensor, autocast: torch.dtype | None) -> Tensor:
    """Features (B, D) in the type of `images`, with parameters and buffers from `state`; under torch.autocast if `autocast`."""
    with autocasting(images.device, autocast):
        features: Tensor = functional_call(backbone, state, (images,))
    return features.to(images.dtype)


def _split(traced: fx.GraphModule, size_of_state: int) -> Programs | None:
    """Cuts the traced graph into the three programs.

    The forward program computes the features and updates the running statistics. A value that only the pullback or only the
    pushforward needs is computed in that program, so that it need not be saved.
    """
    graph = traced.graph
    _simplify(graph)
    arguments = [node for node in graph.nodes if node.op == "placeholder"]
    of_forward = size_of_state + 4  # images, step, seed, first
    inputs, (cotangent, *tangents) = arguments[:of_forward], arguments[of_forward:]
    outputs: Any = graph.output_node().args[0]
    features, *gradients, along = outputs
    reached = _closure([cotangent, *tangents], lambda node: node.users)
    # In-place operations that do not depend on a cotangent or tangent belong to the forward pass: they update the statistics.
    in_place = [node for node in graph.nodes if node.op == "call_function" and node.is_impure() and node not in reached]
    forward = _closure([features, *in_place], lambda node: node.all_input_nodes)
    # Each result of an operator with several results is saved separately. Saving the tuple would keep BatchNorm's output alive
    # when only its mean is needed.
    forward |= {node for node in graph.nodes if node.target is operator.getitem and node.args[0] in forward}
    later = _closure([*gradients, along], lambda node: node.all_input_nodes)
    overwritten = _read_before_a_write(graph, in_place) & later - forward
    if overwritten & reached:
        return None  # it depends on a cotangent or tangent, so it cannot be computed before the write
    forward |= _closure(overwritten, lambda node: node.all_input_nodes)
    pullback = _closure(gradients, lambda node: node.all_input_nodes) - forward
    pushforward = _closure([along], lambda node: node.all_input_nodes) - forward
    read_later = {used for node in pullback | pushforward for used in node.all_input_nodes} | {*gradients, along}
    saved = [node for node in graph.nodes if node in forward & read_later and node.op != "placeholder"]
    kept = forward | pullback | pushforward
    if any(node.op == "call_function" and node.is_impure() and node not in kept for node in graph.nodes):
        # Such a node writes into a tensor that other nodes read. Those nodes do not have the write as an input, so the programs
        # would drop the write and read the old values.
        return None
    return Programs(
        _program(traced, inputs, forward, [features, *saved]),
        _program(traced, [*inputs, *saved, cotangent], pullback, gradients),
        _program(traced, [*inputs, *saved, *tangents], pushforward, [along]),
    )


def _read_before_a_write(graph: fx.Graph, in_place: list[fx.Node]) -> set[fx.Node]:
    """Nodes that read a tensor which a later node of `in_place` overwrites, as the copy that an activation in place keeps of its
    input. They must run before the write. Writes into inputs do not count: these are running statistics, and derivatives read
    them only in eval mode, in which nothing is written.
    """
    order = {node: number for number, node in enumerate(graph.nodes)}
    found = set()
    for write in in_place:
        target = write.args[0]
        while isinstance(target, fx.Node) and _shares_memory(target):
            target = target.args[0]
        if not isinstance(target, fx.Node) or target.op == "placeholder":
            continue
        same = _closure([target], lambda node: [user for user in node.users if _shares_memory(user) and user.args[0] is node])
        readers = {user for node in same for user in node.users if not _shares_memory(user)}
        found |= {reader for reader in readers if order[reader] < order[write]}
    return found


def _shares_memory(node: fx.Node) -> bool:
    """Whether a node's result lies in the memory of its first argument: a view, or an operation in place."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.arguments) and schema.arguments[0].alias_info is not None


def _simplify(graph: fx.Graph) -> None:
    """Removes nodes that only tracing needed, and arithmetic with the images' tangent, which is 0.

    Raises:
        ValueError: when a node draws random numbers.
    """
    # Images have no tangent. torch's forward-mode rules fill in zeros, so the first convolution would run once more on zeros.
    zeros: set[fx.Node] = set()
    for node in graph.nodes:
        # A released forward pass is recomputed (memory `lean`), and would then draw other numbers than the first time.
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise ValueError(f"the classifier's backbone draws random numbers ({node.target}); it cannot be differentiated here")
        if node.target in (aten.alias.default, aten.detach.default):
            node.replace_all_uses_with(node.args[0])
        elif _is_zero(node, zeros):
            zeros.add(node)
        elif node.target is aten.add.Tensor and node.args[0] in zeros:
            node.replace_all_uses_with(node.args[1])
        elif node.target is aten.add.Tensor and node.args[1] in zeros and _is_same_without(node):
            node.replace_all_uses_with(node.args[0])
    graph.eliminate_dead_code()


STILL_ZERO = {
    *(aten.expand.default, aten._to_copy.default, aten.t.default, aten.transpose.int, aten.permute.default),
    *(aten.view.default, aten._unsafe_view.default),
}
"""Operators that keep zeros."""


def _is_same_without(total: fx.Node) -> bool:
    """Whether a sum with zeros can be replaced by its other part: also by one with fewer dimensions if it is only added again."""
    same = total.args[0].meta["val"].shape == total.meta["val"].shape  # type: ignore[union-attr]
    others = [value for user in total.users for value in user.args if isinstance(value, fx.Node) and value is not total]
    full = any(value.meta["val"].shape == total.meta["val"].shape for value in others)
    return same or (full and all(user.target is aten.add.Tensor for user in total.users) and len(total.users) == 1)


def _is_zero(node: fx.Node, zeros: set[fx.Node]) -> bool:
    if node.target in STILL_ZERO:
        return node.args[0] in zeros
    if node.target in (aten.mm.default, aten.mul.Tensor):
        return any(argument in zeros for argument in node.args)
    if node.target is aten.convolution.default:
        return node.args[0] in zeros and node.args[2] is None
    return node.target in (aten.zeros.default, aten._efficientzerotensor.default)


def _closure(nodes: Iterable[fx.Node], neighbours: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    """`nodes` and all nodes that can be reached from them over `neighbours`."""
    found: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        if (node := pending.pop()) not in found:
            found.add(node)
            pending.extend(neighbours(node))
    return found


def _program(traced: fx.GraphModule, inputs: list[fx.Node], body: set[fx.Node], outputs: list[fx.Node]) -> Program:
    """The nodes of `body`, in the traced order, as a function. The function frees each value after its last use."""
    part = fx.Graph()
    copies = {node: part.placeholder(node.name) for node in inputs}
    for node in traced.graph.nodes:
        if node in body and node not in copies:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output([copies[node] for node in outputs])
    return fx.GraphModule(traced, part).forward
