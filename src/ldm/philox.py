"""The noise torch draws on CUDA, made on the CPU: Philox4x32-10 (Salmon et al. 2011), then Box-Muller.

    (w0, w1, w2, w3) = philox(counter = (call, thread), key = seed), 64 bits each, low word first
    u = 2^-32 w0 + 2^-33,  v = 2 pi (2^-32 w1 + 2^-33)
    z = sqrt(-2 ln u) sin v

Number i of a tensor is the first that thread i draws, as long as there are no more numbers than threads.
"""

from collections.abc import Sequence
from math import pi, prod

import numpy as np
import torch
from torch import Tensor

from ldm.checks import whole
from ldm.errors import InputError
from ldm.noise import sent

ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85  # the golden ratio and sqrt(3) - 1, in 32 bits
WORD = 2**32 - 1
TWO_PI = float(np.float32(2 * pi))

PER_CALL = 4  # what a call adds to the offset of CUDA's generator
THREADS = 108 * 2048  # of an A100: multiprocessors × threads on each


class Philox:
    """`noise()` -> fresh unit noise [b c h w], float32; row i is what CUDA's generator of seeds[i] gives.

    seeds  one int per image, from 0 to 2^64 - 1
    shape  (c, h, w) of one image's latent; a call may ask for another
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device | str = "cpu"):
        self.seeds, self.shape, self.device = seeds, shape, device
        self.offset = 0

    def __call__(self, shape: tuple[int, int, int] | None = None) -> Tensor:
        rows = [normal(seed, shape or self.shape, self.offset) for seed in self.seeds]
        self.offset += PER_CALL
        return sent(torch.stack(rows), self.device)


def normal(seed: int, shape: Sequence[int], offset: int = 0) -> Tensor:
    """What torch's `randn(shape, device="cuda")` gives at a seed and an offset; float32, on the CPU.

    seed    from 0 to 2^64 - 1
    shape   of at most THREADS numbers; cards with fewer threads (T4: 40960) differ beyond theirs
    offset  as the generator's `get_offset()`: 0 at its first call, 4 more at each further one

    log and sine are taken in float64 and rounded; CUDA's `__sincosf` is quick, and off by about 1e-6.
    Raises InputError for a seed, shape or offset that is none of these.
    """
    seed = whole("seed", seed, 2**64 - 1, least=0)
    offset = whole("offset", offset, 2**64 - PER_CALL, least=0)
    if offset % PER_CALL:
        raise InputError(f"offset {offset} is not a multiple of {PER_CALL}, as CUDA counts; try 0 at first")
    count = prod(shape)
    if not 0 <= count <= THREADS:
        message = f"shape {tuple(shape)} has {count} numbers, but from 0 to {THREADS} are as on CUDA"
        raise InputError(f"{message}; make it smaller")
    call, thread = offset // PER_CALL, np.arange(count, dtype=np.uint64)
    words = [np.full_like(thread, word) for word in (call & WORD, call >> 32)]
    w0, w1, *_ = philox([*words, thread, thread >> 32], (seed & WORD, seed >> 32))
    return torch.from_numpy(box_muller(w0, w1).reshape(tuple(shape)))


def philox(counter: Sequence[np.ndarray], key: tuple[int, int]) -> Sequence[np.ndarray]:
    """Four words of 32 random bits for each counter of four words; uint64 arrays [n] hold the words.

    Ten rounds: the halves of two products change places, the upper ones mixed with the key and other words.
    """
    c0, c1, c2, c3 = counter
    for i in range(ROUNDS):
        k0, k1 = ((k + i * w) & WORD for k, w in zip(key, WEYL, strict=True))
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & WORD, (p0 >> 32) ^ c3 ^ k1, p0 & WORD
    return c0, c1, c2, c3


def box_muller(w0: np.ndarray, w1: np.ndarray) -> np.ndarray:
    """sqrt(-2 ln u) sin v of two words (Box and Muller 1958); u, v and the result are float32, as in CUDA."""
    u = w0.astype(np.float32) * 2**-32 + 2**-33
    v = w1.astype(np.float32).astype(np.float64) * (2**-32 * TWO_PI) + 2**-33 * TWO_PI
    v = v.astype(np.float32)  # rounded once, as a fused multiply-add
    z: np.ndarray = np.sqrt(-2 * np.log(u, dtype=np.float64)) * np.sin(v, dtype=np.float64)
    return z.astype(np.float32)
