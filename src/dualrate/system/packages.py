"""Networks whose calls on a CPU are functions compiled ahead of time, each in a file: `torch.export`, AOTInductor.

A third of a small call is Python and dispatch. `torch.compile` keeps part of it, and checks at each call whether what
it compiled still holds; a package has neither. It holds no weights, but is given those of the network: so it serves all
networks of one kind, and is compiled once on a machine.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from dualrate.system.device import Launch, keep_compiled, prepare_calls, processor

FORMAT = 2  # of what `digest` names


def package_calls(network: nn.Module, cache: Path) -> None:
    """Has a network's calls on a CPU packaged when they are first made, as `prepare_calls`.

    Once for all numbers of rows, if all its inputs have as many, more than one; else for each.
    cache: where packages are, and what else is compiled, as of `keep_compiled`
    What cannot be exported as a whole is left to `torch.compile`. Where no compiler works a call stays as it is, with a
    warning.
    """

    def prepare(call: Callable[..., Any], tensors: Sequence[Tensor]) -> Launch:
        with warnings.catch_warnings(action="ignore"):  # of torch, about itself
            try:
                return compiled(Called(network, call), tensors, cache)
            except Exception as error:  # whatever the toolchain raises
                why = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        warnings.warn(f"calls run uncompiled: {why}", stacklevel=2)
        return lambda tensors: call(*tensors)

    keep_compiled(cache)
    prepare_calls(network, prepare, kinds)


def of_any_rows(tensors: Sequence[Tensor]) -> bool:
    """Whether all have as many rows, more than one."""
    return len({x.shape[:1] for x in tensors}) == 1 and tensors[0].ndim > 0 and tensors[0].shape[0] > 1


def kinds(tensors: Sequence[Tensor]) -> Hashable:
    """All that a package is made for. Steps between elements of a side of one have no meaning."""
    first = of_any_rows(tensors)
    return first, *(
        (x.shape[first:], tuple(step for step, n in zip(x.stride(), x.shape, strict=True) if n > 1), x.dtype)
        for x in map(laid_out, tensors)
    )


def laid_out(x: Tensor) -> Tensor:
    """The tensor in the memory of activations, so that states and outputs are of one kind."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.contiguous()


class Called(nn.Module):
    """A call of a network, whose outputs are its tensors alone; structure, rest: of all that it returns."""

    def __init__(self, network: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        leaves, self.structure = tree_flatten(self.call(*tensors))
        self.rest = [Tensor if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def compiled(called: Called, tensors: Sequence[Tensor], cache: Path) -> Launch:
    """A call from its package, or by `torch.compile`, if it cannot be exported. Raises what the toolchain raises."""
    try:
        program = exported(called, [laid_out(x) for x in tensors])
    except Exception:  # whatever torch raises
        call = torch.compile(called.call, dynamic=False)
        call(*tensors)  # compiles now, so that what fails does so here
        return lambda tensors: call(*tensors)
    return packaged(called, program, cache / f"{digest(program, kinds(tensors))}.pt2")


def exported(called: Called, tensors: Sequence[Tensor]) -> torch.export.ExportedProgram:
    rows = {0: torch.export.Dim("rows", min=2)} if of_any_rows(tensors) else None
    return torch.export.export(called, tuple(tensors), dynamic_shapes={"tensors": (rows,) * len(tensors)})


def packaged(called: Called, program: torch.export.ExportedProgram, file: Path) -> Launch:
    """The call that was exported, from a package in this file; it is made there where none can be read."""
    model = loaded(file)
    if model is None:
        file.parent.mkdir(parents=True, exist_ok=True)
        settings = {"aot_inductor.package_constants_in_so": False}
        with TemporaryDirectory(prefix=".tmp-", dir=file.parent) as folder:
            aside = Path(folder, file.name)
            torch._inductor.aoti_compile_and_package(program, package_path=str(aside), inductor_configs=settings)
            aside.replace(file)
        model = torch._inductor.aoti_load_package(str(file))
    constants = {**program.state_dict, **program.constants}
    weights = {name: constants[name] for name in model.get_constant_fqns()}
    model.load_constants(weights, check_full_update=True, user_managed=True)

    def launch(tensors: Sequence[Tensor]) -> Any:
        outputs = iter(model(*map(laid_out, tensors)))
        assert weights  # which the package points at
        return tree_unflatten([next(outputs) if leaf is Tensor else leaf for leaf in called.rest], called.structure)

    return launch


def loaded(file: Path) -> Any:
    """A package; None where there is none, or a damaged one."""
    try:
        return torch._inductor.aoti_load_package(str(file)) if file.exists() else None
    except Exception:  # whatever torch raises
        return None


def digest(program: torch.export.ExportedProgram, kind: Hashable) -> str:
    """Name of a program and all that its package depends on: inputs, constants, threads, torch and the processor.

    Under autocast the code is that of a module within.
    """
    code = [part.code for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
    parts = [FORMAT, code, kind, torch.get_num_threads(), torch.__version__, processor()]
    parts += [(name, x.shape, x.stride(), x.dtype) for name, x in program.state_dict.items()]
    parts += [(name, x.dtype, x.tolist()) for name, x in program.constants.items() if isinstance(x, Tensor)]
    return hashlib.sha256(repr(parts).encode()).hexdigest()
