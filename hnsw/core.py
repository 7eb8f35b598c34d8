"""The algorithm of `simple.py`, compiled with numba: the same graph, the same answers.

What differs is how things are kept.

- A node is a slot, an int32 row number. Layer 0 links are a row of `links0`, the links of layers 1 and up are rows of
  `upper` that begin at `offsets[slot]`; a row is filled from the left and ends at the first -1.
- A candidate is one int64 key: the distance's bits above, the slot, and in the lowest bit whether it was expanded
  already. Keys sort as (distance, slot), and one sorted pool replaces the two heaps of algorithm 2: it holds the
  results, and those not expanded yet are the candidates. A candidate that has left the pool is farther than all
  results, which is when algorithm 2 stops.
- The pool is kept farthest first. An insertion drops the first key and moves a block one place forward in memory, and
  a run of empty places (EMPTY, the largest odd number) at the front makes it behave as if it were always full.

Functions here trust their arguments; `index.py` checks them. All release the GIL.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

from .simple import LARGEST_SQUARE

L2, IP, COSINE = 0, 1, 2  # as in METRICS
# Values of `Graph.state`. All but FREE slots are nodes of the graph and route searches; DELETED ones may come back;
# RETIRED ones (replaced, or deleted for good) wait for `repair`, which makes them FREE.
LIVE, DELETED, RETIRED, FREE = 0, 1, 2, 3
KEEP_NONE = np.bool_(False)  # one type with a variable: `_select` is compiled once
EMPTY = np.int64(0x7FFFFFFFFFFFFFFF)
LINE = 16  # float32 values in a cache line; rows are padded to whole lines
LONG_POOL = 128  # keys; from here on, an insertion moves only the part of the pool that it must
BLOCK = 16  # keys that it moves at a time

# What to prefetch of a row, as measured. AMD (Zen 5): all of its lines, into the second-level cache, to which more lines
# can be on their way than to the first. Intel (Emerald Rapids): the first six, into the first level; the hardware sees a
# stream and fetches the rest, and more requests only hold it up (1.15 x the queries at 256 dimensions, ef 40).
AMD = binding.get_host_cpu_name().startswith("znver")
PREFETCH_LINES, PREFETCH_LOCALITY = (1 << 20, 2) if AMD else (6, 3)

# Sums may be reordered and fused, which is what lets LLVM vectorise them. Never "nnan" or "ninf": they would make the
# comparisons below undefined where a distance overflows.
FAST = {"contract", "reassoc", "nsz", "arcp"}
SETTINGS = {"cache": True, "nogil": True, "fastmath": FAST, "error_model": "numpy", "no_cfunc_wrapper": True}
compiled = njit(**SETTINGS)  # what Python calls
# What compiled code alone calls. The first use of an index waits for the compiler, so there are three kinds:
# - without the code that takes Python's arguments apart, which is often longer than the function's own;
inner = njit(**SETTINGS, no_cpython_wrapper=True)
# - and inlined by LLVM, which finds these too large to do it by itself: a call with arrays costs as much as a short
#   distance;
inlined = njit(**SETTINGS, no_cpython_wrapper=True, forceinline=True)
# - or spliced into the caller before anything is compiled. A compiled function holds a copy of all that it calls, which
#   is optimised again with it: what calls much and has few callers saves a copy of all that.
spliced = njit(**SETTINGS, inline="always")


class Graph(NamedTuple):
    """The arrays of an index; row i of each belongs to slot i. Arrays may have spare rows at the end."""

    vectors: np.ndarray  # float32 (slots, padded dim), each row aligned to a cache line; length 1 under cosine
    links0: np.ndarray  # int32 (slots, 2 M)
    upper: np.ndarray  # int32 (rows, M)
    offsets: np.ndarray  # int32 (slots,): the row in `upper` of layer 1
    levels: np.ndarray  # int8 (slots,): the highest layer
    state: np.ndarray  # uint8 (slots,): LIVE, DELETED, RETIRED or FREE
    labels: np.ndarray  # int64 (slots,): the user's ids


class Scratch(NamedTuple):
    """What one running search needs for itself."""

    tags: np.ndarray  # uint8 (slots,): equals epoch[0] where the slot was visited
    epoch: np.ndarray  # int64 (1,)


@intrinsic
def _prefetch_row(typingctx, array, row):
    """Ask for the cache lines of array[row], as many as PREFETCH_LINES, without waiting for them."""

    def codegen(context, builder, signature, args):
        array_type = signature.args[0]
        struct = context.make_array(array_type)(context, builder, args[0])
        zero, step, most = (context.get_constant(types.intp, n) for n in (0, LINE, PREFETCH_LINES * LINE))
        start = cgutils.get_item_pointer(context, builder, array_type, struct, [args[1], zero])
        width = builder.extract_value(struct.shape, 1)
        width = builder.select(builder.icmp_signed("<", width, most), width, most)
        int32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, int32, int32, int32])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        with cgutils.for_range_slice(builder, zero, width, step, intp=width.type) as (column, _):
            address = builder.bitcast(builder.gep(start, [column]), cgutils.voidptr_t)
            builder.call(prefetch, [address, int32(0), int32(PREFETCH_LOCALITY), int32(1)])  # 0: to read; 1: data
        return context.get_dummy_value()

    return types.none(array, types.intp), codegen


@intrinsic
def _float_bits(typingctx, value):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), codegen


@intrinsic
def _bits_float(typingctx, value):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@intrinsic
def _take(typingctx, counter):
    """counter[0], which becomes one more; of several threads that ask at once, each gets another number."""

    def codegen(context, builder, signature, args):
        struct = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.atomic_rmw("add", struct.data, context.get_constant(types.int64, 1), "monotonic")

    return types.int64(counter), codegen


@inlined
def _key(distance, slot):
    """int64 that sorts as (distance, slot); negative distances (inner product) included."""
    bits = _float_bits(np.float32(distance))
    bits ^= (bits >> np.int32(31)) & np.int32(0x7FFFFFFF)
    return (np.int64(bits) << np.int64(32)) | (np.int64(slot) << np.int64(1))


@inlined
def _slot(key):
    return (key & np.int64(0xFFFFFFFF)) >> np.int64(1)


@inlined
def _key_distance(key):
    bits = np.int32(key >> np.int64(32))
    return _bits_float(np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))))


def _distances(rows: int):
    """An intrinsic f(metric, q, vectors, slots): the distances from q to `rows` slots, a tuple; to a slot, if it is one.

    LINE values at a time, which divide the padded length: what LLVM makes of the plain loop branches between several
    vectorised copies of it, and at these lengths that costs more than the arithmetic. The additions have the same order
    for any number of rows, so a pair of vectors has one distance, to the last bit.
    """

    @intrinsic
    def distances(typingctx, metric, q, vectors, slots):
        def codegen(context, builder, signature, args):
            _, q_type, vectors_type, slots_type = signature.args
            q_struct = context.make_array(q_type)(context, builder, args[1])
            struct = context.make_array(vectors_type)(context, builder, args[2])
            zero = context.get_constant(types.intp, 0)
            data = [
                cgutils.get_item_pointer(context, builder, vectors_type, struct, [slot, zero])
                for slot in (cgutils.unpack_tuple(builder, args[3]) if rows > 1 else [args[3]])
            ]
            vector = ir.VectorType(ir.FloatType(), LINE)
            totals = [cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * LINE)) for _ in data]

            def load(pointer, i):
                return builder.load(builder.bitcast(builder.gep(pointer, [i]), vector.as_pointer()), align=4)

            def add_up(term):
                step = context.get_constant(types.intp, LINE)
                size = builder.extract_value(q_struct.shape, 0)
                with cgutils.for_range_slice(builder, zero, size, step, intp=size.type) as (i, _):
                    a = load(q_struct.data, i)
                    for pointer, total in zip(data, totals):
                        x, y = term(a, load(pointer, i))
                        product = builder.fmul(x, y, flags=["contract"])
                        builder.store(builder.fadd(builder.load(total), product, flags=["contract"]), total)

            is_l2 = builder.icmp_signed("==", args[0], context.get_constant(types.int64, L2))
            with builder.if_else(is_l2) as (squares, products):
                with squares:
                    add_up(lambda a, b: [builder.fsub(a, b)] * 2)
                with products:
                    add_up(lambda a, b: [a, b])
            one = context.get_constant(types.float32, 1)
            sums = _fold(builder, [builder.load(total) for total in totals])
            sums = [builder.select(is_l2, total, builder.fsub(one, total)) for total in sums]
            return context.make_tuple(builder, signature.return_type, sums) if rows > 1 else sums[0]

        if rows == 1:
            return types.float32(types.int64, q, vectors, types.intp), codegen
        return types.UniTuple(types.float32, rows)(types.int64, q, vectors, types.UniTuple(types.intp, rows)), codegen

    return distances


def _fold(builder, vectors):
    """The sums of one or four LLVM vectors of LINE values: halves are added until one value is left.

    Four are folded to four values each, and then two by two: three additions in place of eight.
    """

    def pick(a, b, lanes):
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes)))

    def halves(v, width):
        return builder.fadd(pick(v, v, range(width // 2)), pick(v, v, range(width // 2, width)))

    width = LINE
    while width > 4 or (width > 1 and len(vectors) == 1):
        vectors = [halves(v, width) for v in vectors]
        width //= 2
    if len(vectors) == 4:
        a, b, c, d = vectors
        ab = builder.fadd(pick(a, b, [0, 1, 4, 5]), pick(a, b, [2, 3, 6, 7]))
        cd = builder.fadd(pick(c, d, [0, 1, 4, 5]), pick(c, d, [2, 3, 6, 7]))
        vectors = [builder.fadd(pick(ab, cd, [0, 2, 4, 6]), pick(ab, cd, [1, 3, 5, 7]))] * 4
    return [builder.extract_element(v, ir.Constant(ir.IntType(32), i)) for i, v in enumerate(vectors)]


_distance = _distances(1)
# Each part of q is loaded once for all four, and four sums grow side by side where the CPU would wait for one.
_four_distances = _distances(4)


@inlined
def _to_keys(metric, q, vectors, slots, count):
    """Put in place of slots[:count] their keys, as seen from q. `slots` has room for three more, which are spoiled."""
    for j in range(count, (count + 3) & ~3):
        slots[j] = slots[0]
    for j in range(0, count, 4):
        a, b, c, d = _four_distances(metric, q, vectors, (slots[j], slots[j + 1], slots[j + 2], slots[j + 3]))
        slots[j] = _key(a, slots[j])
        slots[j + 1] = _key(b, slots[j + 1])
        slots[j + 2] = _key(c, slots[j + 2])
        slots[j + 3] = _key(d, slots[j + 3])


@inner
def _new_epoch(scratch):
    """Forget which slots were visited."""
    if scratch.epoch[0] == 255:
        scratch.tags[:] = 0
        scratch.epoch[0] = 0
    scratch.epoch[0] += 1
    return np.uint8(scratch.epoch[0])


@inlined
def _pool_insert(pool, key):
    """Put `key` in its place in the farthest-first pool and drop the farthest; return the place."""
    last = pool.shape[0] - 1
    if last < LONG_POOL:
        larger = np.int64(pool[last] > key)
        for i in range(last):  # no branch for the CPU to guess wrong, and every place at once in vector registers
            larger += np.int64(pool[i] > key)
            pool[i] = max(pool[i + 1], min(pool[i], key))
        pool[last] = min(pool[last], key)
        return larger - 1
    place = 0
    while place + BLOCK <= last and pool[place + BLOCK] > key:
        for i in range(place, place + BLOCK):
            pool[i] = pool[i + 1]
        place += BLOCK
    while place < last and pool[place + 1] > key:
        pool[place] = pool[place + 1]
        place += 1
    pool[place] = key
    return place


@inner
def _search_layer(metric, q, vectors, links, offsets, layer, pool, scratch, fresh):
    """Algorithm 2. `pool` holds the entry points and then the results, farthest first.

    `links` is `links0` with layer 0, `upper` with others. `fresh` is int64 scratch as wide as a row of links and
    three more.
    """
    tags, epoch = scratch.tags, _new_epoch(scratch)
    for j in range(pool.shape[0] - 1, -1, -1):
        if pool[j] == EMPTY:
            break
        pool[j] &= ~np.int64(1)  # not expanded
        tags[_slot(pool[j])] = epoch
    width = links.shape[1]
    place = pool.shape[0] - 1  # nearest that may be not expanded; all after it are
    while place >= 0:
        key = pool[place]
        if key & 1:
            if key == EMPTY:
                break
            place -= 1
            continue
        pool[place] = key | 1
        row = _slot(key)
        if layer > 0:
            row = np.int64(offsets[row]) + layer - 1
        else:  # the links of the next to expand, unless a nearer one turns up now, are on their way during all that follows
            ahead = place - 1
            while ahead > 0 and pool[ahead] & 1 and pool[ahead] != EMPTY:
                ahead -= 1
            if ahead >= 0 and pool[ahead] != EMPTY:
                _prefetch_row(links, _slot(pool[ahead]))
        count = np.int64(0)
        for j in range(width):
            e = links[row, j]
            if e < 0:
                break
            fresh[count] = e  # kept only if e is new: no branch for the CPU to guess wrong
            count += np.int64(tags[e] != epoch)
            tags[e] = epoch
        for j in range(count):
            _prefetch_row(vectors, fresh[j])
        _to_keys(metric, q, vectors, fresh, count)
        farthest, near = pool[0], 0
        for j in range(count):  # nothing to guess here either
            key = fresh[j]
            fresh[near] = key
            near += np.int64(key < farthest)
        for j in range(near):
            key = fresh[j]
            if key < pool[0]:
                inserted = _pool_insert(pool, key)
                if inserted >= place:
                    place = inserted
                    if layer == 0:
                        _prefetch_row(links, _slot(key))


@spliced
def _descend(graph, metric, q, entry, top, layer, ef_upper, scratch, fresh):
    """From the entry point down to just above `layer`: the key of the nearest node found there.

    With `ef_upper` candidates on layers 2 and up, which have few nodes, and one on layer 1.
    """
    pool = np.empty(ef_upper, np.int64)
    pool[:] = EMPTY
    pool[ef_upper - 1] = _key(_distance(metric, q, graph.vectors, entry), entry)
    for upper_layer in range(top, layer, -1):
        if upper_layer == 1:
            pool = pool[pool.shape[0] - 1 :]
        _search_layer(metric, q, graph.vectors, graph.upper, graph.offsets, upper_layer, pool, scratch, fresh)
    return pool[pool.shape[0] - 1]


@inner
def _select(metric, vectors, keys, m, keep_pruned, chosen):
    """Algorithm 4 over a pool of keys, farthest first; writes up to `m` slots into `chosen` (int64, room for three
    more), returns how many."""
    taken = 0
    for i in range(keys.shape[0] - 1, -1, -1):
        if taken == m or keys[i] == EMPTY:
            break
        e = _slot(keys[i])
        distance = _key_distance(keys[i])
        diverse = True
        for j in range(0, taken, 4):
            four = (chosen[j], chosen[j + 1], chosen[j + 2], chosen[j + 3])
            a, b, c, d = _four_distances(metric, vectors[e], vectors, four)
            if min(a, b, c, d) < distance:
                diverse = False
                break
        keys[i] &= ~np.int64(1)
        if diverse:
            for j in range(taken, taken + 4):  # the places after it only fill up the last four
                chosen[j] = e
            taken += 1
            keys[i] |= 1  # chosen
    if keep_pruned:
        for i in range(keys.shape[0] - 1, -1, -1):
            if taken == m:
                break
            if keys[i] & 1 == 0:
                chosen[taken] = _slot(keys[i])
                taken += 1
    return taken


@compiled
def find_neighbours(graph, metric, entry, top, slots, counter, ef_upper, ef, keep_pruned, starts, picks, scratch):
    """Choose links for `slots`, which are new and not above layer `top`, in the graph as it is.

    Slots before one in `slots` are seen by comparing with each. Results go to picks[starts[i] + layer], -1 filled.
    Reads the graph only: threads that share a batch share `counter` (int64 (1,), 0 to begin with) and take turns.
    """
    vectors = graph.vectors
    m = graph.upper.shape[1]
    pool = np.empty(ef, np.int64)
    keys = np.empty(ef, np.int64)
    before = np.empty(slots.shape[0] + 3, np.int64)
    chosen = np.empty(m + 3, np.int64)
    fresh = np.empty(graph.links0.shape[1] + 3, np.int64)
    while True:
        i = _take(counter)
        if i >= slots.shape[0]:
            break
        q = vectors[slots[i]]
        level = np.int64(graph.levels[slots[i]])
        pool[:] = EMPTY
        pool[ef - 1] = _descend(graph, metric, q, entry, top, level, ef_upper, scratch, fresh)
        for layer in range(level, -1, -1):  # each from all results of the layer above
            links = graph.links0 if layer == 0 else graph.upper
            _search_layer(metric, q, vectors, links, graph.offsets, layer, pool, scratch, fresh)
            for j in range(ef):
                keys[j] = pool[j]
            others = np.int64(0)
            for j in range(i):
                before[others] = slots[j]
                others += np.int64(graph.levels[slots[j]] >= layer)
            _to_keys(metric, q, vectors, before, others)
            for j in range(others):
                if before[j] < keys[0]:
                    _pool_insert(keys, before[j])
            taken = _select(metric, vectors, keys, m, keep_pruned, chosen)
            for j in range(m):
                picks[starts[i] + layer, j] = chosen[j] if j < taken else -1


@compiled
def link_back(graph, metric, slots, starts, picks, part, parts):
    """The end of algorithm 1: the neighbours of the new `slots` link back, and shrink where they are full.

    Does so for the neighbours whose slot is `part` modulo `parts`: threads that take different parts write different
    rows, each in the order of the insertions.
    """
    keys = np.empty(graph.links0.shape[1] + 4, np.int64)
    chosen = np.empty(graph.links0.shape[1] + 3, np.int64)
    for i in range(slots.shape[0]):
        for layer in range(graph.levels[slots[i]] + 1):
            for j in range(picks.shape[1]):
                e = picks[starts[i] + layer, j]
                if e < 0:
                    break
                if e % parts == part:
                    row = graph.links0[e] if layer == 0 else graph.upper[graph.offsets[e] + layer - 1]
                    _append_link(metric, graph.vectors, row, e, slots[i], keys, chosen)


@spliced
def _append_link(metric, vectors, row, e, q, keys, chosen):
    most = row.shape[0]
    if row[most - 1] < 0:
        count = 0
        while row[count] >= 0:
            count += 1
        row[count] = q
        return
    vector = vectors[e]
    keys[0] = q
    for j in range(most):  # a row is all but sorted, nearest first
        _prefetch_row(vectors, row[j])
        keys[most - j] = row[j]
    _to_keys(metric, vector, vectors, keys, most + 1)
    for j in range(most + 1):
        _insort(keys, j, keys[j])
    taken = _select(metric, vectors, keys[: most + 1], most, KEEP_NONE, chosen)
    for j in range(most):
        row[j] = chosen[j] if j < taken else -1


@inner
def _insort(keys, count, key):
    """Insert `key` into keys[:count], farthest first."""
    j = count
    while j > 0 and keys[j - 1] < key:
        keys[j] = keys[j - 1]
        j -= 1
    keys[j] = key


@compiled
def load_query(metric, row, q):
    """Copy the float32 `row` into the padded `q`, at length 1 under cosine; False where it cannot be a query."""
    total = np.float64(0)
    for j in range(row.shape[0]):
        total += np.float64(row[j]) * np.float64(row[j])
    if not total <= LARGEST_SQUARE:  # NaN, infinite or too large
        return False
    scale = np.float64(1)
    if metric == COSINE:
        if total == 0:
            return False
        scale = 1 / np.sqrt(total)
    for j in range(row.shape[0]):
        q[j] = row[j] * scale
    for j in range(row.shape[0], q.shape[0]):
        q[j] = 0
    return True


@compiled
def search(graph, metric, entry, top, queries, first, last, k, ef_upper, ef, ids, distances, scratch):
    """Algorithm 5 for queries[first:last] where every node is live; ids and distances come padded with -1 and inf.

    Returns the first query that is not finite (or zero under cosine), or -1.
    """
    q = np.empty(graph.vectors.shape[1], np.float32)
    pool = np.empty(ef, np.int64)
    fresh = np.empty(graph.links0.shape[1] + 3, np.int64)
    for i in range(first, last):
        if not load_query(metric, queries[i], q):
            return i
        pool[:] = EMPTY
        pool[ef - 1] = _descend(graph, metric, q, entry, top, np.int64(0), ef_upper, scratch, fresh)
        _search_layer(metric, q, graph.vectors, graph.links0, graph.offsets, np.int64(0), pool, scratch, fresh)
        for j in range(k):
            key = pool[ef - 1 - j]
            exists = key != EMPTY
            ids[i, j] = graph.labels[_slot(key)] if exists else -1
            distances[i, j] = _key_distance(key) if exists else np.inf
    return -1


@compiled
def search_one(
    vectors,
    links0,
    upper,
    offsets,
    levels,
    state,
    labels,
    tags,
    epoch,
    metric,
    entry,
    top,
    query,
    k,
    ef_upper,
    ef,
    ids,
    distances,
):
    """`search` for one query: a call from Python is 1.2 us shorter with the arrays one by one than in two tuples."""
    graph = Graph(vectors, links0, upper, offsets, levels, state, labels)
    scratch = Scratch(tags, epoch)
    return search(graph, metric, entry, top, query, 0, 1, k, ef_upper, ef, ids, distances, scratch)


@inner
def _collect(graph, metric, q, slot, ef, allowed, most, scratch, fresh):
    """Algorithm 2 on layer 0 for the `ef` nearest *allowed* nodes; the others are walked over, not returned.

    `allowed` is uint8 (slots,). Returns ascending keys, at most `ef`, and True; or False where that took more than
    `most` distances, as among nodes that are all far away: comparing with every allowed one is faster then. The pool
    is nearest first here and as long as it must be: it ends at the ef-th allowed node.
    """
    epoch = _new_epoch(scratch)
    scratch.tags[slot] = epoch
    pool = np.empty(4 * ef + 64, np.int64)
    pool[0] = _key(_distance(metric, q, graph.vectors, slot), slot)
    size = 1
    found = np.int64(allowed[slot])
    place = 0
    computed = 1
    while place < size:
        if pool[place] & 1:
            place += 1
            continue
        if computed > most:
            return pool[:0], False
        row = _slot(pool[place])
        pool[place] |= 1
        count = 0
        for j in range(graph.links0.shape[1]):
            e = graph.links0[row, j]
            if e < 0:
                break
            fresh[count] = e
            count += np.int64(scratch.tags[e] != epoch)
            scratch.tags[e] = epoch
        computed += count
        for j in range(count):
            _prefetch_row(graph.vectors, fresh[j])
        for j in range(count):
            e = fresh[j]
            key = _key(_distance(metric, q, graph.vectors, e), e)
            if found >= ef and key > pool[size - 1]:
                continue
            if size == pool.shape[0]:
                longer = np.empty(2 * size, np.int64)
                for i in range(size):
                    longer[i] = pool[i]
                pool = longer
            low, high = 0, size
            while low < high:
                middle = (low + high) >> 1
                if pool[middle] < key:
                    low = middle + 1
                else:
                    high = middle
            for i in range(size, low, -1):
                pool[i] = pool[i - 1]
            pool[low] = key
            size += 1
            place = min(place, low)
            if allowed[e]:
                found += 1
                if found > ef:
                    size -= 1  # the last is the farthest of the allowed
                    found -= 1
            while found >= ef and not allowed[_slot(pool[size - 1])]:
                size -= 1
    count = 0
    for i in range(size):
        if allowed[_slot(pool[i])]:
            pool[count] = pool[i] & ~np.int64(1)
            count += 1
    return pool[:count], True


@compiled
def search_allowed(
    graph, metric, entry, top, queries, first, last, k, ef_upper, ef, allowed, most, ids, distances, scratch
):
    """As `search`, for the nodes with allowed[slot] = 1 only (uint8 (slots,)); `most` as for `_collect`."""
    q = np.empty(graph.vectors.shape[1], np.float32)
    fresh = np.empty(graph.links0.shape[1] + 3, np.int64)
    slots = np.empty(0, np.int32)
    for i in range(first, last):
        if not load_query(metric, queries[i], q):
            return i
        slot = _slot(_descend(graph, metric, q, entry, top, np.int64(0), ef_upper, scratch, fresh))
        keys, done = _collect(graph, metric, q, slot, ef, allowed, most, scratch, fresh)
        if not done:
            if slots.shape[0] == 0:
                slots = np.flatnonzero(allowed).astype(np.int32)
            search_exact(graph, metric, queries, i, i + 1, k, slots, ids, distances)
            continue
        for j in range(min(k, keys.shape[0])):
            ids[i, j] = graph.labels[_slot(keys[j])]
            distances[i, j] = _key_distance(keys[j])
    return -1


@compiled
def search_radius(graph, metric, entry, top, query, radius, ef_upper, ef, allowed, most, scratch):
    """Ids and distances of the allowed nodes within `radius`, nearest first: ef doubles until it reaches beyond.

    A walk that would take more than `most` distances gives way to comparing with all; 0 does so at once.
    """
    q = np.empty(graph.vectors.shape[1], np.float32)
    fresh = np.empty(graph.links0.shape[1] + 3, np.int64)
    load_query(metric, query, q)
    keys, done = np.empty(0, np.int64), most > 0
    if done:
        slot = _slot(_descend(graph, metric, q, entry, top, np.int64(0), ef_upper, scratch, fresh))
        keys, done = _collect(graph, metric, q, slot, ef, allowed, most, scratch, fresh)
    while done and keys.shape[0] == ef and _key_distance(keys[ef - 1]) <= radius:
        ef *= 2
        keys, done = _collect(graph, metric, q, slot, ef, allowed, most, scratch, fresh)
    if keys.shape[0] < ef:  # it gave up, or reached everything that a walk can: compare with all, and miss nothing
        keys = np.empty(allowed.shape[0], np.int64)
        count = 0
        for slot in range(allowed.shape[0]):
            if allowed[slot]:
                keys[count] = _key(_distance(metric, q, graph.vectors, slot), slot)
                count += 1
        keys = np.sort(keys[:count])
    count = 0
    while count < keys.shape[0] and _key_distance(keys[count]) <= radius:
        count += 1
    ids = np.empty(count, np.int64)
    distances = np.empty(count, np.float32)
    for i in range(count):
        ids[i] = graph.labels[_slot(keys[i])]
        distances[i] = _key_distance(keys[i])
    return ids, distances


@compiled
def search_exact(graph, metric, queries, first, last, k, slots, ids, distances):
    """As `search`, by comparing each query with all of `slots`; k is at most their number."""
    q = np.empty(graph.vectors.shape[1], np.float32)
    pool = np.empty(k, np.int64)
    for i in range(first, last):
        if not load_query(metric, queries[i], q):
            return i
        pool[:] = EMPTY
        for j in range(slots.shape[0]):
            slot = np.int64(slots[j])
            key = _key(_distance(metric, q, graph.vectors, slot), slot)
            if key < pool[0]:
                _pool_insert(pool, key)
        for j in range(k):
            ids[i, j] = graph.labels[_slot(pool[k - 1 - j])]
            distances[i, j] = _key_distance(pool[k - 1 - j])
    return -1


@compiled
def repair(graph, metric, count, part, parts, scratch):
    """Take the links to RETIRED nodes out of the rows of all others among slots [:count].

    A row that loses a link chooses again, by algorithm 4, among what is left of it and what the lost neighbours
    linked to. Only rows of nodes that stay are written and only rows of RETIRED ones are read besides: threads that
    take different parts (slot modulo `parts`) do not meet.
    """
    width0 = graph.links0.shape[1]
    pool = np.empty(4 * width0, np.int64)
    chosen = np.empty(width0 + 3, np.int64)
    for slot in range(part, count, parts):
        if graph.state[slot] >= RETIRED:
            continue
        for layer in range(graph.levels[slot] + 1):
            links = graph.links0 if layer == 0 else graph.upper
            row = slot if layer == 0 else np.int64(graph.offsets[slot]) + layer - 1
            _repair_row(graph, metric, slot, links, row, layer, pool, chosen, scratch)


@inner
def _repair_row(graph, metric, slot, links, row, layer, pool, chosen, scratch):
    width = links.shape[1]
    lost = False
    for j in range(width):
        if links[row, j] < 0:
            break
        lost |= graph.state[links[row, j]] == RETIRED
    if not lost:
        return
    epoch = _new_epoch(scratch)
    scratch.tags[slot] = epoch
    q = graph.vectors[slot]
    pool[:] = EMPTY
    for j in range(width):
        e = links[row, j]
        if e < 0:
            break
        if graph.state[e] != RETIRED:
            _offer(graph, metric, q, np.int64(e), pool, epoch, scratch)
            continue
        beyond = np.int64(e) if layer == 0 else np.int64(graph.offsets[e]) + layer - 1
        for i in range(width):
            other = links[beyond, i]
            if other < 0:
                break
            if graph.state[other] != RETIRED:
                _offer(graph, metric, q, np.int64(other), pool, epoch, scratch)
    taken = _select(metric, graph.vectors, pool, width, KEEP_NONE, chosen)
    for j in range(width):
        links[row, j] = chosen[j] if j < taken else -1


@inner
def _offer(graph, metric, q, slot, pool, epoch, scratch):
    if scratch.tags[slot] == epoch:
        return
    scratch.tags[slot] = epoch
    key = _key(_distance(metric, q, graph.vectors, slot), slot)
    if key < pool[0]:
        _pool_insert(pool, key)


@compiled
def mark_reachable(graph, entry, reached):
    """Set reached[slot] = 1 (uint8) for every node that a walk on layer 0 from `entry` can reach."""
    queue = np.empty(reached.shape[0], np.int32)
    queue[0] = entry
    reached[entry] = 1
    size = 1
    i = 0
    while i < size:
        for j in range(graph.links0.shape[1]):
            e = graph.links0[queue[i], j]
            if e < 0:
                break
            if not reached[e]:
                reached[e] = 1
                queue[size] = e
                size += 1
        i += 1


@compiled
def first_fault(graph, count, rows, entry, top):
    """Check every link and offset of slots [:count]; returns (slot, layer) of the first fault, or (-1, -1).

    After this no function above can leave the arrays, whatever file they came from.
    """
    if count == 0:
        return (-1, -1)
    for slot in range(count):
        level = np.int64(graph.levels[slot])
        if graph.state[slot] > FREE:
            return (slot, -1)
        if graph.state[slot] == FREE:
            continue
        if level < 0 or level > top:
            return (slot, level)
        offset = np.int64(graph.offsets[slot])
        if level > 0 and (offset < 0 or offset + level > rows):
            return (slot, level)
        for layer in range(level + 1):
            links = graph.links0 if layer == 0 else graph.upper
            row = slot if layer == 0 else offset + layer - 1
            ended = False
            for j in range(links.shape[1]):
                e = links[row, j]
                if e < 0:
                    ended = True
                    continue
                if ended or e >= count or e == slot:
                    return (slot, layer)
                if graph.state[e] == FREE or graph.levels[e] < layer:
                    return (slot, layer)
    if entry < 0 or entry >= count or graph.state[entry] == FREE or graph.levels[entry] != top:
        return (entry, top)
    return (-1, -1)


# Ids are found through an open-addressing table of slots (int32, a power of two long, -1 where empty). An entry counts
# only if the slot still bears the id, so entries of retired slots need not be removed.


@inner
def _home(label, size):
    return np.int64((np.uint64(label) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)) & np.int64(size - 1)


@compiled
def find_slots(table, labels, state, wanted, slots):
    """slots[i] = the slot of id wanted[i] (LIVE or DELETED), or -1."""
    size = table.shape[0]
    for i in range(wanted.shape[0]):
        place = _home(wanted[i], size)
        slots[i] = -1
        while table[place] >= 0:
            slot = table[place]
            if labels[slot] == wanted[i] and state[slot] <= DELETED:
                slots[i] = slot
                break
            place = (place + 1) & (size - 1)


@compiled
def enter_slots(table, labels, state, slots):
    """Enter `slots` under their labels; returns how many empty places that took."""
    size = table.shape[0]
    taken = 0
    for i in range(slots.shape[0]):
        place = _home(labels[slots[i]], size)
        while table[place] >= 0 and state[table[place]] <= DELETED:
            place = (place + 1) & (size - 1)
        taken += np.int64(table[place] < 0)
        table[place] = slots[i]
    return taken
