"""The joining of pairs in byte-pair encoding (Sennrich et al. 2016)."""

from collections.abc import Sequence
from heapq import heappop, heappush

Pair = tuple[str, str]


def merged(pieces: Sequence[str], rank: dict[Pair, int]) -> tuple[str, ...]:
    """While any neighbours are a pair of known rank, all pairs of the lowest are joined, from the left.

    A heap holds (rank, place) of all such neighbours, so that a word of n letters takes n log n.
    """
    row, end = list(pieces), len(pieces)  # a piece stays at its first letter's place; "" was joined
    after, before = list(range(1, end + 1)), list(range(-1, end - 1))
    heap: list[tuple[int, int]] = []

    def offer(i: int) -> None:
        if i >= 0 and after[i] < end and (r := rank.get((row[i], row[after[i]]))) is not None:
            heappush(heap, (r, i))

    for i in range(end):
        offer(i)
    while heap:
        lowest, places = heap[0][0], []
        while heap and heap[0][0] == lowest:
            places.append(heappop(heap)[1])
        joined = []
        for i in places:
            j = after[i]
            if row[i] and j < end and rank.get((row[i], row[j])) == lowest:  # not joined to another meanwhile
                row[i], row[j], after[i] = row[i] + row[j], "", after[j]
                if after[i] < end:
                    before[after[i]] = i
                joined.append(i)
        for i in joined:
            offer(before[i])
            offer(i)
    return tuple(piece for piece in row if piece)
