"""Asks for memory before a compiled loop on a CPU needs it.

Idea: a core by itself looks a few lines ahead, and neither over the end of a page nor from one block of the KV cache to the
next, so a loop over more than its caches hold waits for much of it. A prefetch names a line early, costs an instruction,
and does no harm where the address is wrong.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LINE = 64
"""Bytes of a cache line."""


@intrinsic
def prefetch(typingctx, array, offset):
    """Asks for the cache line that is `offset` numbers behind the start of a contiguous array."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        emit_prefetch(builder, builder.gep(data, [args[1]]))
        return context.get_dummy_value()

    return types.none(array, types.intp), codegen


def emit_prefetch(builder, address):
    """The instruction, for code that is built by hand: to read, into the second-level cache, data."""
    int32 = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, int32, int32, int32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [builder.bitcast(address, cgutils.voidptr_t), int32(0), int32(2), int32(1)])
