"""Where a leaf stands in a small Merkle tree, and how a reader who has only the leaf finds the root.

RFC 6962 section 2.1: a leaf is SHA-256(0x00 + data), a node SHA-256(0x01 + left + right), so that no node passes for a
leaf. A tree that is not complete keeps its last node for the next level, which is the same tree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, NamedTuple

#: Leaves of one tree; a bound for readers, who decide nothing by it.
LEAVES_MAX: Final = 1_024
_HASH: Final = 32  # bytes of SHA-256


class Place(NamedTuple):
    """One leaf's place in a tree.

    Attributes:
        number: of the leaf, from 0.
        size: leaves of the whole tree, 2 to 1,024.
        path: the hashes that join it to the root, nearest first, 32 bytes each.
    """

    number: int
    size: int
    path: bytes


def plant(leaves: Sequence[bytes]) -> tuple[bytes, list[Place]]:
    """Return the root of the tree over these leaves, 32 bytes, and each leaf's place.

    Args:
        leaves: 2 to 1,024.
    """
    sha256, size = hashlib.sha256, len(leaves)
    level = [sha256(b"\0" + leaf).digest() for leaf in leaves]
    levels: list[list[bytes]] = []
    while len(level) > 1:
        levels.append(level)
        pairs = range(0, len(level) - 1, 2)
        above = [sha256(b"\1" + level[at] + level[at + 1]).digest() for at in pairs]
        level = above + level[2 * len(above) :]
    return level[0], [Place(index, size, _path(levels, index)) for index in range(size)]


def _path(levels: list[list[bytes]], index: int) -> bytes:
    path: list[bytes] = []
    for level in levels:
        if (beside := index ^ 1) < len(level):
            path.append(level[beside])
        index >>= 1
    return b"".join(path)


def root_from(leaf: bytes, place: Place) -> bytes:
    """Return the root that a leaf at this place belongs to.

    Raises:
        ValueError: no tree of that size has such a place, or its path has another length.
    """
    index, width, rest = place.number, place.size, place.path
    if not (2 <= width <= LEAVES_MAX and 0 <= index < width):
        raise ValueError("no such place in a tree")
    sha256 = hashlib.sha256
    node = sha256(b"\0" + leaf).digest()
    while width > 1:
        if index ^ 1 < width:
            beside, rest = rest[:_HASH], rest[_HASH:]
            if len(beside) != _HASH:
                raise ValueError("the path is too short")
            node = sha256(b"\1" + (beside + node if index & 1 else node + beside)).digest()
        index, width = index >> 1, (width + 1) >> 1
    if rest:
        raise ValueError("the path is too long")
    return node
