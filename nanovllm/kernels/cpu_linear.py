"""The linear layers' product on a CPU: x W^T with W laid out in panels, tile by tile in vector registers.

Idea: with the few rows of a decode step a product waits for its weights. A panel holds the weights of two vectors of
outputs, input after input, so they are read in one stream, from which two loads serve all rows of a tile: each row's input
is broadcast and multiplied with both (the register tile of Goto and van de Geijn 2008). A core alone asks for too little
ahead of time: while one panel is multiplied, the next one is prefetched, line by line, shared out among the panel's tiles.
A row's sum runs over the inputs in order, whatever rows are beside it. One thread, float32; compiled by numba.
"""

from __future__ import annotations

import llvmlite.binding
import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from nanovllm.kernels.cpu_prefetch import LINE, emit_prefetch

LANES, TILE_ROWS = (16, 8) if llvmlite.binding.get_host_cpu_features().get("avx512f") else (8, 6)
"""Floats in a vector, and rows of a tile: two vectors of sums a row, two of weights and an input fit into the registers."""

PANEL = 2 * LANES
"""Outputs of a panel."""


def make_panels(weight: np.ndarray) -> np.ndarray:
    """weight (N, K), N a multiple of PANEL -> (N / PANEL, K, PANEL).

    The panels start on a cache line, so that no vector lies in two; `_tile` relies on it.
    """
    num_outputs, num_inputs = weight.shape
    room = np.empty(weight.size + LINE // 4, np.float32)
    first = -room.ctypes.data % LINE // 4
    panels = room[first : first + weight.size].reshape(num_outputs // PANEL, num_inputs, PANEL)
    panels[:] = weight.reshape(num_outputs // PANEL, PANEL, num_inputs).transpose(0, 2, 1)
    return panels


def linear(x: torch.Tensor, panels: np.ndarray, bias: torch.Tensor | None) -> torch.Tensor:
    """x (T, K), panels of W (N, K), bias (N) -> x W^T + bias (T, N)."""
    rows = np.ascontiguousarray(x.numpy())
    out = np.empty((len(rows), len(panels) * PANEL), np.float32)
    multiply(rows, panels, out)
    out = torch.from_numpy(out)
    return out if bias is None else out.add_(bias)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def multiply(x, panels, out):
    """x (T, K) times `make_panels` of W (N, K) -> out (T, N); all contiguous."""
    num_rows, num_inputs = x.shape
    num_tiles = (num_rows + TILE_ROWS - 1) // TILE_ROWS
    for p in range(len(panels)):
        for tile in range(num_tiles):
            first, end = tile * num_rows // num_tiles, (tile + 1) * num_rows // num_tiles
            ahead = (num_tiles + tile) * num_inputs * PANEL // num_tiles
            _tile(x, first, end - first, panels[p], ahead, PANEL // num_tiles, out, p * PANEL)


@intrinsic
def _tile(typingctx, x, first, num_rows, panel, ahead, step, out, column):
    """out[first : first + num_rows, column : column + PANEL] = x[first : first + num_rows] @ panel.

    For 1 to TILE_ROWS rows, each with its own code. At input k the line of panel.flat[ahead + k * step] is prefetched.
    """

    def codegen(context, builder, signature, args):
        def array(index):
            struct = context.make_array(signature.args[index])(context, builder, args[index])
            return struct.data, cgutils.unpack_tuple(builder, struct.shape)[1]

        (x, num_inputs), (panel, _), (out, num_outputs) = array(0), array(3), array(6)
        _, first, num_rows, _, ahead, step, _, column = args
        after = builder.append_basic_block("after")
        cases = builder.switch(num_rows, after)
        for rows in range(1, TILE_ROWS + 1):
            block = builder.append_basic_block(f"rows{rows}")
            cases.add_case(num_rows.type(rows), block)
            builder.position_at_end(block)
            sums = _sums(builder, rows, x, first, num_inputs, panel, ahead, step)
            for row, vectors in enumerate(sums):
                start = builder.add(builder.mul(builder.add(first, _index(row)), num_outputs), column)
                for half, vector in enumerate(vectors):
                    builder.store(
                        builder.load(vector),
                        _vector_at(builder, out, builder.add(start, _index(half * LANES))),
                        align=4,
                    )
            builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    index = types.intp
    return types.none(x, index, index, panel, index, index, out, index), codegen


VECTOR = ir.VectorType(ir.FloatType(), LANES)
INT32 = ir.IntType(32)


def _sums(builder, rows, x, first, num_inputs, panel, ahead, step):
    """The loop over the inputs: two vectors of sums for each row. LLVM keeps the variables in registers."""
    fma = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(VECTOR, [VECTOR] * 3), f"llvm.fmuladd.v{LANES}f32"
    )
    zero = ir.Constant(VECTOR, [0.0] * LANES)
    sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(2)] for _ in range(rows)]
    starts = [builder.gep(x, [builder.mul(builder.add(first, _index(row)), num_inputs)]) for row in range(rows)]
    next_panel = builder.gep(panel, [ahead])
    with cgutils.for_range(builder, num_inputs) as loop:
        emit_prefetch(builder, builder.gep(next_panel, [builder.mul(loop.index, step)]))
        at = builder.mul(loop.index, _index(PANEL))
        weights = [
            builder.load(_vector_at(builder, panel, builder.add(at, _index(half * LANES))), align=LINE)
            for half in range(2)
        ]
        for row in range(rows):
            value = builder.load(builder.gep(starts[row], [loop.index]))
            value = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), value, INT32(0))
            value = builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(INT32, LANES), [0] * LANES))
            for vector, weight in zip(sums[row], weights, strict=True):
                builder.store(builder.call(fma, [value, weight, builder.load(vector)]), vector)
    return sums


def _index(value):
    return ir.IntType(64)(value)


def _vector_at(builder, data, index):
    return builder.bitcast(builder.gep(data, [index]), VECTOR.as_pointer())
