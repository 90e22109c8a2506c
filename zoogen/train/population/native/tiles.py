"""How loops over outputs are cut into tiles of accumulators that stay in registers, and where tiles read alike."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache


@lru_cache(maxsize=4096)
def best_tile(rows: int, columns: int, registers: int) -> tuple[int, int]:
    """Rows and columns of a register tile of an outer product, for the fewest cycles.

    A tile of r x c accumulators takes r + c loads and r c multiply-adds per step of the reduction. Cores do about two
    of each per cycle, and an addition waits four cycles for the one before it, so fewer than eight accumulators are
    idle for a while. The r operands of the rows stay in registers, those of the columns pass through one more.
    """

    def cycles(height: int, width: int) -> float:
        tiles = [(h, w) for _, h in cut(rows, height) for _, w in cut(columns, width)]
        return sum(max(h * w / 2, (h + w) / 2, 4.0) for h, w in tiles)

    sizes = [
        (h, w)
        for h in range(1, min(rows, registers) + 1)
        for w in range(1, min(columns, registers) + 1)
        if h * w + h + 1 <= registers
    ]
    return min(sizes, key=lambda size: (cycles(*size), -size[0] * size[1]))


def cut(total: int, size: int) -> list[tuple[int, int]]:
    """(start, length) of consecutive pieces."""
    return [(start, min(size, total - start)) for start in range(0, total, size)]


@dataclass(frozen=True)
class Run:
    """``count`` neighbouring tiles, the first at ``start``, all of one ``length`` and with the same ``taps``.

    ``taps[k]`` lists (position in the tile, offset of the operand from the run's moving base) for kernel position k.
    """

    start: int
    length: int
    count: int
    base: int  # operand index that offsets count from, for the first tile
    step: int  # how far the base moves from tile to tile
    taps: tuple[tuple[tuple[int, int], ...], ...]


def runs(outputs: int, tile: int, pairs: list[list[tuple[int, int]]], step: int) -> list[Run]:
    """Cut ``outputs`` positions into tiles and join neighbours that read alike.

    Args:
        outputs: Number of positions.
        tile: Positions per tile.
        pairs: For each output position, (kernel position, operand position) of its terms, within bounds.
        step: How far the operands of tile t + 1 lie beyond those of tile t, where both are alike.
    """
    kernel = 1 + max((k for terms in pairs for k, _ in terms), default=0)
    found: list[Run] = []
    for start, length in cut(outputs, tile):
        base = start // tile * step
        taps: list[list[tuple[int, int]]] = [[] for _ in range(kernel)]
        for i in range(length):
            for k, operand in pairs[start + i]:
                taps[k].append((i, operand - base))
        frozen = tuple(tuple(t) for t in taps)
        last = found[-1] if found else None
        if last and last.length == length and last.taps == frozen:
            found[-1] = Run(last.start, length, last.count + 1, last.base, step, frozen)
        else:
            found.append(Run(start, length, 1, base, step, frozen))
    return found
