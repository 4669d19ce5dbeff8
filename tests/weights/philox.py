"""The noise that torch draws on an NVIDIA GPU, computed anywhere.

Philox4x32-10 (Salmon et al. 2011): ten rounds mix a counter with a key, the seed. Each thread has its own
counter and makes one number of its first two words, by Box and Muller: sqrt(-2 ln u) sin(2 pi v).
"""

import numpy as np

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85  # added to the key after each round
MOST = 40_960  # threads of the smallest GPU (a T4) that the figures may come from
WORD, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def randn(seed: int, count: int) -> np.ndarray:
    """The first draw of `torch.randn(count, generator=torch.Generator("cuda").manual_seed(seed))`.

    -> float32 [count]. Raises ValueError for more numbers than every GPU has threads: the rest of them
    depends on the GPU.
    """
    if count > MOST:
        raise ValueError(f"{count} numbers depend on the GPU that drew them; ask for at most {MOST}")
    u, v = (word * 2.0**-32 + 2.0**-33 for word in words(seed, np.arange(count, dtype=np.uint64)))
    return (np.sqrt(-2 * np.log(u)) * np.sin(2 * np.pi * v)).astype(np.float32)


def words(seed: int, thread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first two of the four words of 32 bits that each thread draws first."""
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    c0, c1, c2, c3 = np.zeros_like(thread), np.zeros_like(thread), thread & WORD, thread >> HALF
    for _ in range(10):
        p0, p1 = np.uint64(MULTIPLIERS[0]) * c0, np.uint64(MULTIPLIERS[1]) * c2
        c0, c1, c2, c3 = (
            (p1 >> HALF) ^ c1 ^ np.uint64(k0),
            p1 & WORD,
            (p0 >> HALF) ^ c3 ^ np.uint64(k1),
            p0 & WORD,
        )
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return c0, c1
