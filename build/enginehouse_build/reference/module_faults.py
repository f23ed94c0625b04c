"""What in a torch module cannot be served however it is exported: looked for in the exported program, named by line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from enginehouse.contract.errors import ExportFailed
from enginehouse.contract.tensors import Tensors
from enginehouse_build.inputs.source import TorchModel

#: Arguments by which an operator that can draw random numbers says whether it does.
_MODES = ("train", "training")
_CHANCES = ("p", "dropout_p", "dropout")
#: Rows that are asked of a module with and without the fast path of its attention.
_ASKED = 64
_LINE = re.compile(r'File "([^"]+)", line (\d+), in (\w+)')


def refuse_unservable(program: torch.export.ExportedProgram, batched: bool) -> None:
    """Raises ExportFailed naming the first buffer or line that keeps the module from answering each row always alike.

    Batch statistics are a fault only where there is a batch.
    """
    for buffer in program.graph_signature.buffers_to_mutate.values():
        where = _where_changed(program, buffer)
        raise ExportFailed(
            f"the module changes its buffer {buffer!r} in forward{where}: its answer would depend on what was "
            "asked before, and a served model keeps no state; in eval mode leave the buffer as it is"
        )
    for node in program.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        given = _arguments(node)
        name = node.target._schema.name.removeprefix("aten::")
        if torch.Tag.nondeterministic_seeded in node.target.tags and _draws(given):
            what = "drops values at random" if "dropout" in name else "draws random numbers"
            raise ExportFailed(
                f"the module {what} ({name}{_at(node)}), so its answers cannot be reproduced and no artifact verified; "
                "use nn.Dropout or training=self.training, which rest in eval mode, or make the random tensor an input"
            )
        if batched and "batch_norm" in name and _of_the_batch(given):
            raise ExportFailed(
                f"the module normalises with the statistics of the batch ({name}{_at(node)}), so a row's answer "
                "depends on who shares its batch; give running statistics (track_running_stats=True, "
                "training=self.training), or build with --no-batch"
            )


def of_fast_path(model: TorchModel, samples: Tensors | None) -> str:
    """What the fast path of torch's attention, which is never exported, does to the answers; empty if nothing."""
    mha = torch.backends.mha
    parts = (torch.nn.TransformerEncoder, torch.nn.TransformerEncoderLayer, torch.nn.MultiheadAttention)
    if (
        samples is None
        or not mha.get_fastpath_enabled()
        or not any(isinstance(m, parts) for m in model.module.modules())
    ):
        return ""
    rows = {name: array[:_ASKED] for name, array in samples.items()}
    try:
        fast = model(rows)
        mha.set_fastpath_enabled(False)
        slow = model(rows)
    except Exception:
        # A module may raise anything, and this is but an explanation.
        return ""
    finally:
        mha.set_fastpath_enabled(True)
    if all(np.allclose(fast[name], slow[name], rtol=1e-3, atol=1e-3, equal_nan=True) for name in fast):
        return ""
    return (
        "; the module itself answers otherwise with the fast path of torch's attention, which is not exported and has 0"
        " for padding: if nothing depends on that, call torch.backends.mha.set_fastpath_enabled(False) in the factory"
    )


def _draws(given: Mapping[str, Any]) -> bool:
    modes = [given[name] for name in _MODES if name in given]
    chances = [given[name] for name in _CHANCES if isinstance(given.get(name), int | float)]
    return all(modes) and all(chances)


def _of_the_batch(given: Mapping[str, Any]) -> bool:
    # An instance norm is a batch norm of one row whose channels are those of all rows.
    value = getattr(given.get("input"), "meta", {}).get("val")
    if value is None or isinstance(value.shape[0], int):
        return False
    return bool(given.get("training", given.get("train", "running_mean" not in given)))


def _arguments(node: torch.fx.Node) -> dict[str, Any]:
    """What `node` was given, by the names in its operator's schema; defaults included."""
    found: dict[str, Any] = {}
    assert isinstance(node.target, torch._ops.OpOverload)
    for at, argument in enumerate(node.target._schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        found[argument.name] = node.args[at] if at < len(node.args) else node.kwargs.get(argument.name, default)
    return found


def _where_changed(program: torch.export.ExportedProgram, buffer: str) -> str:
    maker = next(name for name, changed in program.graph_signature.buffers_to_mutate.items() if changed == buffer)
    return next((_at(node) for node in program.graph.nodes if node.name == maker), "")


def _at(node: torch.fx.Node) -> str:
    """The innermost line of the user's own that made `node`."""
    lines = [line for line in _LINE.findall(node.meta.get("stack_trace") or "") if "site-packages" not in line[0]]
    return f", {lines[-1][0]} line {lines[-1][1]} in {lines[-1][2]}" if lines else ""
