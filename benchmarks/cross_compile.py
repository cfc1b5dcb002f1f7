"""Compiles what `torch.compile` makes of a function for an H100 on a machine that has none, with Triton and its ptxas.

Torch asks the device for its properties and gets those of an H100; tensors are fake, on a device of type `cuda`, and
have no memory. Inductor writes the source of its kernels for forward and backward pass as ever; Triton compiles each
for compute capability 9.0 with the options that Inductor gives it. Nothing is loaded or run.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from types import FunctionType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._dynamo.utils import detect_fake_mode
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.nn.attention import flex_attention
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.utils._pytree import tree_map_only

from nld_train.errors import UserError
from nld_train.model.attention import flex

_CAPABILITY = (9, 0)
# What torch's compiler reads of `torch.cuda.get_device_properties` (H100 SXM5, NVIDIA's data sheet and tuning guide).
_H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=_CAPABILITY[0],
    minor=_CAPABILITY[1],
    multi_processor_count=132,
    total_memory=80 << 30,
    shared_memory_per_block=48 << 10,
    shared_memory_per_block_optin=227 << 10,
    shared_memory_per_multiprocessor=228 << 10,
    regs_per_multiprocessor=1 << 16,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    L2_cache_size=50 << 20,
    # CPU builds of torch name the device by this one.
    gcnArchName="sm_90",
)
# Of `torch.cuda`, to the compiler's questions.
_ANSWERS: dict[str, Callable[..., Any]] = {
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "get_device_properties": lambda *_: _H100,
    "get_device_capability": lambda *_: _CAPABILITY,
    "_exchange_device": lambda *_: 0,
    "_maybe_exchange_device": lambda *_: 0,
    "get_rng_state": lambda *_: torch.empty(0),
    "set_rng_state": lambda *_: None,
    "synchronize": lambda *_: None,
}
# Block masks and what is compiled with them have to be of one mode.
_FAKE = FakeTensorMode(allow_non_fake_inputs=True)
_TILES = ("BLOCK_M", "BLOCK_N", "BLOCK_M1", "BLOCK_N1", "BLOCK_M2", "BLOCK_N2")
# What ptxas says of a kernel, with -v.
_PTXAS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads|Used (\d+) registers")


_CUDA = torch.device("cuda", 0)


@dataclass(frozen=True)
class Compiled:
    """What a kernel uses of a device.

    Attributes:
        name: Inductor's.
        tiles: queries and keys of a tile, as the kernel's template calls them; empty for other kernels.
        warps: of a block of threads.
        stages: of its software pipeline.
        registers: of a thread.
        spilled_bytes: of a thread's registers, stored to memory and loaded again, the larger of both.
        stack_bytes: of a thread.
        shared_bytes: shared memory of a block of threads.
        cubin_bytes: the code.
        serialized: whether ptxas makes its asynchronous matrix products wait for each other, which it warns of.
    """

    name: str
    tiles: dict[str, int]
    warps: int
    stages: int
    registers: int
    spilled_bytes: int
    stack_bytes: int
    shared_bytes: int
    cubin_bytes: int
    serialized: bool


class _AllCompiled(Exception):
    """Forward and backward pass are compiled: there is nothing to run them on."""


@contextmanager
def shapes_of_masks() -> Iterator[None]:
    """Block masks are made without values: `flex.make_mask` is quick at any length."""

    def create(*arguments: Any, **named: Any) -> BlockMask:
        with _FAKE:
            return create_block_mask(*arguments, **named)

    flex.clear_masks()
    with patch.object(flex, "create_block_mask", create):
        yield
    flex.clear_masks()


def compile_for_hopper(function: Callable[[], Any]) -> list[Compiled]:
    """What each kernel of FlexAttention uses, forward and backward, in a function of ours that calls it.

    Args:
        function: gets fake tensors of the CPU where it makes any, and does not return.

    Raises:
        UserError: Triton is not installed.
        Exception: of Inductor or Triton, where a kernel cannot be compiled.
    """
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise UserError("Triton is not installed: CUDA builds of torch bring it; else pip install triton") from error
    sources: list[tuple[str, str]] = []
    with _pretended_h100(sources), _FAKE:
        compiled = torch.compile(_copy_of(flex._attention), backend=_backend(), fullgraph=True, dynamic=False)
        with (
            patch.object(flex, "kernel", lambda _: compiled),
            patch.object(flex, "refuse_gradients_on_cpu", lambda *_: None),
            patch.object(flex_attention, "_validate_device", lambda *_: None),
        ):
            try:
                function()
            except _AllCompiled:
                return [each for name, source in sources for each in _compile(name, source)]
    raise AssertionError("nothing was compiled")


def _copy_of(function: Any) -> Any:
    """With a cache of compiled code of its own."""
    return FunctionType(function.__code__.replace(), function.__globals__, function.__name__)


def _backend() -> Any:
    """Inductor, for the graphs of both passes as they would be on a GPU: autograd has traced them on the CPU."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table

    def compiler(is_backward: bool) -> Callable[..., Any]:
        def compile_graph(graph: GraphModule, inputs: Any) -> Callable[..., Any]:
            mode = detect_fake_mode(inputs)
            assert mode is not None, "the inputs are fake"
            with mode:
                _move(graph)
                compile_fx_inner(graph, _moved(inputs), is_backward=is_backward)
            return _stop

        return compile_graph

    return aot_autograd(
        fw_compiler=compiler(False),
        bw_compiler=compiler(True),
        decompositions=select_decomp_table(),
        partition_fn=min_cut_rematerialization_partition,
    )


def _stop(*_: Any) -> Any:
    raise _AllCompiled


def _move(graph: GraphModule) -> None:
    """To the device, with the normaliser of the forward pass as an output, which a CPU has none of."""
    for module in graph.modules():
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:
                node.meta = {name: _moved(value) if name == "val" else value for name, value in node.meta.items()}
                node.kwargs = {name: _CUDA if name == "device" else value for name, value in node.kwargs.items()}
                if str(node.target).startswith("flex_attention"):
                    more = {"OUTPUT_LOGSUMEXP": True}
                    node.args = tuple({**each, **more} if isinstance(each, dict) else each for each in node.args)


def _moved(tensors: Any) -> Any:
    """Fake tensors of the same shapes, strides and types on the device."""
    return tree_map_only(
        Tensor, lambda each: torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device=_CUDA), tensors
    )


@contextmanager
def _pretended_h100(sources: list[tuple[str, str]]) -> Iterator[None]:
    """Torch's compiler finds an H100; the name and source of each kernel that it writes are kept in `sources`."""
    from torch._dynamo.device_interface import CudaInterface
    from torch._functorch import config as functorch_config
    from torch._inductor import config as inductor_config
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.runtime import triton_helpers
    from triton.runtime import driver

    def keep(_: Any, name: str, source: str, *__: Any, **___: Any) -> Any:
        sources.append((name, source))
        return SimpleNamespace()

    with ExitStack() as stack, TemporaryDirectory() as folder:
        for name, answer in _ANSWERS.items():
            stack.enter_context(patch.object(torch.cuda, name, answer))
            if (ours := name.removeprefix("_")) in vars(CudaInterface):
                stack.enter_context(patch.object(CudaInterface, ours, staticmethod(answer)))
        stack.enter_context(patch.object(CudaInterface.Worker, "get_device_properties", staticmethod(lambda *_: _H100)))
        # Else the current stream, and tensors of `cuda`, would need a driver.
        stack.enter_context(patch.object(torch.accelerator, "is_available", lambda: False))
        stack.enter_context(patch.object(FakeTensorMode, "avoid_device_init", property(lambda _: True)))
        stack.enter_context(patch.object(fake_tensor, "init_gpu_context", lambda *_: None))
        # Nothing is in them to be copied, and a CPU build of torch would ask for the device.
        stack.enter_context(patch.object(Tensor, "copy_", lambda tensor, *_, **__: tensor))
        # What the generated code imports or calls when it is loaded.
        stack.enter_context(patch.object(torch._C, "_cuda_getCurrentRawStream", lambda _: 0, create=True))
        stack.enter_context(patch.object(triton_helpers, "set_driver_to_gpu", lambda: None))
        stack.enter_context(patch.object(driver, "_active", SimpleNamespace(get_current_target=lambda: _target())))
        stack.enter_context(patch.object(AsyncCompile, "triton", keep))
        # Both passes are compiled before the first one runs, here, and none comes from a cache.
        stack.enter_context(functorch_config.patch(force_non_lazy_backward_lowering=True))
        stack.enter_context(inductor_config.patch(force_disable_caches=True, compile_threads=1))
        stack.enter_context(patch.dict("os.environ", {"TRITON_CACHE_DIR": folder, "TRITON_DUMP_PTXAS_LOG": "1"}))
        yield


def _target() -> Any:
    """Triton's name of the device."""
    from torch._inductor.runtime.triton_compat import GPUTarget

    return GPUTarget("cuda", 10 * _CAPABILITY[0] + _CAPABILITY[1], _H100.warp_size)


def _compile(name: str, source: str) -> Iterator[Compiled]:
    """The configurations of a kernel, as `CachingAutotuner` compiles them before it loads them."""
    import triton
    from torch._inductor.codecache import PyCodeCache
    from torch._inductor.runtime.triton_compat import ASTSource

    tuner = getattr(PyCodeCache.load(source), name)
    for choice in tuner.configs:
        meta = tuner._create_compile_meta(choice)
        options = tuner._create_compile_options(choice, meta)
        kernel = ASTSource(tuner.fn, meta["signature"], meta["constants"], meta["configs"][0])
        with redirect_stdout(io.StringIO()) as log:
            binary = triton.compile(kernel, target=_target(), options=options)
        yield _use_of(name, source, binary, log.getvalue())


def _use_of(name: str, source: str, binary: Any, log: str) -> Compiled:
    """From Triton's result and the log of ptxas, which has one entry function."""
    found = [match.groups() for match in _PTXAS.finditer(log)]
    assert len(found) == 2, f"ptxas said: {log}"
    frames, uses = ([each for each in found if (each[3] is None) == is_frame] for is_frame in (True, False))
    stack, stores, loads = (int(number) for number in frames[0][:3])
    tiles = {tile: re.search(rf"\b{tile} : tl\.constexpr = (\d+)", source) for tile in _TILES}
    return Compiled(
        name=name,
        tiles={tile: int(match[1]) for tile, match in tiles.items() if match},
        warps=binary.metadata.num_warps,
        stages=binary.metadata.num_stages,
        registers=int(uses[0][3]),
        spilled_bytes=max(stores, loads),
        stack_bytes=stack,
        shared_bytes=binary.metadata.shared,
        cubin_bytes=len(binary.asm["cubin"]),
        serialized="wgmma" in log and "serialized" in log,
    )
