"""The RFC 6962 Merkle tree over event hashes, built one leaf at a time.

Section 2.1 of RFC 6962 (and of RFC 9162): a leaf is SHA-256(0x00 + data), a node SHA-256(0x01 + left + right), the root
of nothing is SHA-256 of the empty string. Only the roots of the complete subtrees on the right edge are kept, at most
one per bit of the size, so a ledger of any length is folded in constant memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


class Frontier:
    """The right edge of a growing tree.

    Attributes:
        size: number of leaves so far.
    """

    __slots__ = ("_edge", "size")

    def __init__(self) -> None:
        self.size = 0
        self._edge: list[bytes] = []

    def append(self, data: bytes) -> None:
        """Add a leaf."""
        self.extend((data,))

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Add leaves in order."""
        sha256, edge, size = hashlib.sha256, self._edge, self.size
        for data in leaves:
            node = sha256(b"\0" + data).digest()
            rest = size
            while rest & 1:
                node = sha256(b"\1" + edge.pop() + node).digest()
                rest >>= 1
            edge.append(node)
            size += 1
        self.size = size

    def root(self) -> bytes:
        """Return the root hash, 32 bytes, of the tree as it is now."""
        if not self._edge:
            return hashlib.sha256(b"").digest()
        node = self._edge[-1]
        for left in reversed(self._edge[:-1]):
            node = hashlib.sha256(b"\1" + left + node).digest()
        return node

    def copy(self) -> Frontier:
        """Return an independent frontier of the same tree."""
        twin = Frontier()
        twin.size, twin._edge = self.size, list(self._edge)
        return twin
