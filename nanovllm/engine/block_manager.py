"""Who owns which KV-cache block, and which full blocks can be shared by their content. Plain Python: no torch here.

A block holds the keys and values of `block_size` consecutive tokens. Keys and values depend on every token before them,
so a full block is known by a *chained* hash: the hash of its own tokens and of the previous block's hash (the idea of
PagedAttention's prefix sharing, Kwon et al. 2023, section 4.4). Equal hash, equal prefix, equal content: share it.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable

import xxhash

from nanovllm.engine.sequence import Sequence


def hash_block(previous: int, token_ids: list[int]) -> int:
    """128-bit hash of one full block, chained to the previous block's hash (0 before the first block)."""
    return xxhash.xxh3_128_intdigest(previous.to_bytes(16, "little") + array("q", token_ids).tobytes())


class BlockManager:
    """Allocates blocks, counts their references and finds cached prefixes.

    A block is in one of three states: *used* (ref_counts > 0), *free and empty*, or *free and cached*: nobody uses it but
    its content is kept under its hash until the space is needed. `free_blocks` is ordered: the next block to be handed
    out comes first, so cached content is evicted least recently used first, and a sequence's last block before its first.

    Args:
        num_blocks: blocks in the pool.
        block_size: token slots in a block.
        enable_prefix_caching: whether full blocks are kept and shared by their hash.
    """

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_caching: bool = True):
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.ref_counts = [0] * num_blocks
        self.free_blocks: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))  # an ordered set
        self.block_of_hash: dict[int, int] = {}
        self.hash_of_block: dict[int, int] = {}

    @property
    def num_free_blocks(self) -> int:
        return len(self.free_blocks)

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    # Prefix cache

    def cached_prefix(self, seq: Sequence) -> list[int]:
        """The cached blocks that hold the longest prefix of the sequence.

        At least one token is always left to compute: the logits of the last token are what the next one is drawn from.
        """
        blocks: list[int] = []
        if self.enable_prefix_caching:
            for index in range((seq.num_tokens - 1) // self.block_size):
                block = self.block_of_hash.get(self._hash(seq, index))
                if block is None:
                    break
                blocks.append(block)
        return blocks

    def cache_computed_blocks(self, seq: Sequence, num_computed_before: int) -> None:
        """Registers the blocks that the last step filled, so that later sequences can share them."""
        if not self.enable_prefix_caching:
            return
        for index in range(num_computed_before // self.block_size, seq.num_computed_tokens // self.block_size):
            block, key = seq.block_table[index], self._hash(seq, index)
            # Two sequences may have computed the same prefix in one step: the first copy is the one that is shared.
            if key not in self.block_of_hash:
                self.block_of_hash[key] = block
                self.hash_of_block[block] = key

    def _hash(self, seq: Sequence, index: int) -> int:
        hashes, size = seq.block_hashes, self.block_size
        while len(hashes) <= index:
            start = len(hashes) * size
            hashes.append(hash_block(hashes[-1] if hashes else 0, seq.token_ids[start : start + size]))
        return hashes[index]

    # Allocation

    def allocate(self, seq: Sequence) -> bool:
        """Gives a waiting sequence its cached prefix and empty blocks for the rest of its tokens.

        Returns False, and changes nothing, where the pool has too few free blocks.
        """
        shared = self.cached_prefix(seq)
        num_new = self.num_blocks_for(seq.num_tokens) - len(shared)
        num_free = self.num_free_blocks - sum(self.ref_counts[block] == 0 for block in shared)
        if num_new > num_free:
            return False
        for block in shared:
            self.free_blocks.pop(block, None)
            self.ref_counts[block] += 1
        seq.block_table = shared + [self._take_free_block() for _ in range(num_new)]
        seq.num_computed_tokens = len(shared) * self.block_size
        return True

    def append_slot(self, seq: Sequence) -> bool:
        """Makes room for the sequence's newest token. Returns False, and changes nothing, where no block is free."""
        if seq.num_tokens <= len(seq.block_table) * self.block_size:
            return True
        if not self.free_blocks:
            return False
        seq.block_table.append(self._take_free_block())
        return True

    def free(self, seq: Sequence) -> None:
        """Takes back all blocks of the sequence; the full ones stay cached until their space is needed."""
        for block in reversed(seq.block_table):
            self.ref_counts[block] -= 1
            if self.ref_counts[block] == 0:
                self.free_blocks[block] = None
        seq.block_table = []
        seq.num_computed_tokens = 0

    def _take_free_block(self) -> int:
        block, _ = self.free_blocks.popitem(last=False)
        key = self.hash_of_block.pop(block, None)
        if key is not None:
            del self.block_of_hash[key]
        self.ref_counts[block] = 1
        return block

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Raises RuntimeError unless every count follows from the block tables of the sequences that hold blocks."""
        expected = [0] * self.num_blocks
        for seq in sequences:
            if len(set(seq.block_table)) != len(seq.block_table):
                raise RuntimeError(f"{seq} holds a block twice.")
            for block in seq.block_table:
                expected[block] += 1
        if expected != self.ref_counts:
            wrong = {b: (self.ref_counts[b], n) for b, n in enumerate(expected) if n != self.ref_counts[b]}
            raise RuntimeError(f"Reference counts differ from the block tables; block: (count, tables) = {wrong}.")
        if set(self.free_blocks) != {block for block, count in enumerate(expected) if count == 0}:
            raise RuntimeError("The free list does not hold exactly the blocks that nobody uses.")
        if {block: key for key, block in self.block_of_hash.items()} != self.hash_of_block:
            raise RuntimeError("The two directions of the prefix cache disagree.")
