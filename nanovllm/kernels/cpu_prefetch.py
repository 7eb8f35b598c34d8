"""Asks for memory before a compiled loop on a CPU needs it.

Idea: a core that reads a long stream by itself waits for most of it: it looks a few lines ahead, and not at all beyond a
page or from one block of the KV cache to the next. A prefetch names the line early, costs an instruction, and does no harm
where the address is wrong.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LINE = 64
"""Bytes of a cache line."""


@intrinsic
def prefetch(typingctx, array, index):
    """Asks for the cache line of array[index], a tuple with a number for each dimension; no bounds are checked."""

    def codegen(context, builder, signature, args):
        struct = context.make_array(signature.args[0])(context, builder, args[0])
        numbers = cgutils.unpack_tuple(builder, args[1])
        numbers = [context.cast(builder, n, kind, types.intp) for n, kind in zip(numbers, index, strict=True)]
        emit_prefetch(builder, cgutils.get_item_pointer(context, builder, signature.args[0], struct, numbers))
        return context.get_dummy_value()

    return types.none(array, index), codegen


def emit_prefetch(builder, address):
    """The instruction, for code that is built by hand: to read, into the second-level cache, data."""
    int32 = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, int32, int32, int32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [builder.bitcast(address, cgutils.voidptr_t), int32(0), int32(2), int32(1)])
