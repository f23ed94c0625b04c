"""What an exporter writes, tidied: functions inlined, constants folded, what does nothing or occurs twice removed.

Nothing but what is exact. `onnxscript.optimizer`, which `torch.onnx.export` runs unless told not to, takes a constant
for 0 or 1 that is so to eight places: `x + 1e-9`, the epsilon that keeps a logarithm or a division finite, is dropped.
"""

from __future__ import annotations

from typing import Any

import onnx_ir
import onnx_ir.passes.common as passes
from onnxscript.optimizer import fold_constants_ir, inline
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules import common as rules

#: As often as one round may leave something for the next.
_ROUNDS = 4
#: The optimizer's own rules in its order, but for those that compare constants with a tolerance (`x + 0`, `x * 1`),
#: that make one clip of two whose ranges need not overlap, and that leave out a cast and with it what it rounds.
_EXACT: tuple[Any, ...] = (
    rules.one_reshape_matmul_reshape_rule,
    rules.two_reshapes_matmul_reshape_rule,
    rules.cast_constant_of_shape_rule,
    rules.cast_constant_of_shape_without_value_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.materialize_reshape_shape_rule,
    rules.min_min_rule,
    rules.max_max_rule,
    rules.min_max_rule,
    rules.max_min_rule,
    rules.successive_relu_rule,
    rules.successive_clip_relu_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.flatten_to_reshape_rule,
    rules.reshape_reshape_rule,
    rules.slice_split_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.squeeze_reshape_1d_rule,
    rules.no_op_dynamic_scatter_nd_rule,
    rules.no_op_static_scatter_nd_rule,
    rules.normalize_pad_format_conv_rule,
    rules.normalize_pad_format_conv_integer_rule,
    rules.fuse_pad_into_conv_rule,
    rules.fuse_pad_into_conv_integer_rule,
    rules.fuse_batchnorm_into_conv_rule,
    rules.fuse_batchnorm_into_conv_transpose_rule,
    rules.fuse_batchnorm_into_gemm_rule,
    rules.remove_optional_bias_from_conv_rule,
    rules.remove_optional_bias_from_conv_transpose_rule,
    rules.remove_optional_bias_from_qlinear_conv_rule,
    rules.remove_optional_bias_from_gemm_rule,
)


def tidy(model: onnx_ir.Model) -> None:
    """Simplify `model` in place; every answer stays what it was, but for the rounding of folded normalisations."""
    inline(model)
    before = -1
    for _ in range(_ROUNDS):
        fold_constants_ir(model, onnx_shape_inference=True)
        rewrite(model, _EXACT)
        if before == (before := sum(1 for _ in model.graph.all_nodes())):
            break
    onnx_ir.passes.Sequential(
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    )(model)
