"""Attention forward in Triton: softmax(q kᵀ / √d) v, for the heads of diffusion UNets.

Two kernels. With many keys the softmax is taken online, block by block (Milakov & Gimelshein 2018; Dao 2023,
alg. 1). With few, the 77 tokens of a text, all keys stay on the chip, and no softmax is online.

Tensor cores multiply tiles whose sides are powers of two, but heads are 40, 80 or 160 wide and texts 77
tokens long. Each such length is two tiles: 40 = 32 + 16, 80 = 64 + 16, 160 = 128 + 32, 77 = 64 + 16, with
zeros beyond.

Products are of the inputs' dtype, sums are float32. exp(x) is 2^(x log2 e), for which a GPU has an
instruction.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ldm_kernels.tiles import Tiles, tiles_for, two_parts

LOG2E = math.log2(math.e)


@triton.jit
def tile(x, rows, columns, step, count, WIDTH: tl.constexpr, MASKED: tl.constexpr):
    """x[rows, columns] of a matrix whose rows are `step` apart; zeros beyond WIDTH columns.

    MASKED: beyond `count` rows as well, else all rows are there.
    """
    inside = columns[None, :] < WIDTH
    if MASKED:
        inside = inside & (rows[:, None] < count)
    return tl.load(x + rows[:, None] * step + columns[None, :], mask=inside, other=0.0)


@triton.jit
def scores(q1, q2, k1, k2, TWO: tl.constexpr):
    """q kᵀ over both parts of the width."""
    s = tl.dot(q1, tl.trans(k1), input_precision="ieee")
    if TWO:
        s = tl.dot(q2, tl.trans(k2), s, input_precision="ieee")
    return s


@triton.jit
def place(x, i, heads, step_b, step_h):
    """Where the matrix of batch entry i // heads and head i % heads begins."""
    return x + (i // heads).to(tl.int64) * step_b + (i % heads).to(tl.int64) * step_h


@triton.jit
def write(o, rows, columns, step, count, x, WIDTH: tl.constexpr):
    """o[rows, columns] = x, of which only `count` rows and WIDTH columns are there."""
    inside = (columns[None, :] < WIDTH) & (rows[:, None] < count)
    tl.store(o + rows[:, None] * step + columns[None, :], x.to(o.dtype.element_ty), mask=inside)


@triton.jit
def online_step(
    q1, q2, k, v, k_step, v_step, at, m, top, total, acc1, acc2, scale,
    D: tl.constexpr, W1: tl.constexpr, W2: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One block of keys: top, total and acc are the maximum, the sum and the weighted values so far."""
    keys, c1 = at + tl.arange(0, KEYS), tl.arange(0, W1)
    k1 = tile(k, keys, c1, k_step, m, D, MASKED)
    k2 = k1
    if W2:
        c2 = W1 + tl.arange(0, W2)
        k2 = tile(k, keys, c2, k_step, m, D, MASKED)
    s = scores(q1, q2, k1, k2, W2 > 0)
    if MASKED:
        s = tl.where(keys[None, :] < m, s, float("-inf"))
    new = tl.maximum(top, tl.max(s, 1) * scale)
    p, shrink = tl.exp2(s * scale - new[:, None]), tl.exp2(top - new)
    total = total * shrink + tl.sum(p, 1)
    v1 = tile(v, keys, c1, v_step, m, D, MASKED)
    acc1 = tl.dot(p.to(v1.dtype), v1, acc1 * shrink[:, None], input_precision="ieee")
    if W2:
        v2 = tile(v, keys, c2, v_step, m, D, MASKED)
        acc2 = tl.dot(p.to(v2.dtype), v2, acc2 * shrink[:, None], input_precision="ieee")
    return new, total, acc1, acc2


@triton.jit
def online(
    q, k, v, o, scale, heads, n, m,
    qb, qh, qn, kb, kh, kn, vb, vh, vn, ob, oh, on,
    D: tl.constexpr, W1: tl.constexpr, W2: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """ROWS queries against all keys, KEYS at a time.

    scale       log2(e) / √d
    xb, xh, xn  strides of x [b h n d]
    """
    i = tl.program_id(1)
    q, k = place(q, i, heads, qb, qh), place(k, i, heads, kb, kh)
    v, o = place(v, i, heads, vb, vh), place(o, i, heads, ob, oh)
    rows, c1 = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, W1)
    q1 = tile(q, rows, c1, qn, n, D, True)
    q2 = q1
    acc1, acc2 = tl.zeros([ROWS, W1], tl.float32), tl.zeros([ROWS, W2 if W2 else 16], tl.float32)
    if W2:
        c2 = W1 + tl.arange(0, W2)
        q2 = tile(q, rows, c2, qn, n, D, True)
    top, total = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    whole = m // KEYS * KEYS
    for at in range(0, whole, KEYS):
        top, total, acc1, acc2 = online_step(
            q1, q2, k, v, kn, vn, at, m, top, total, acc1, acc2, scale, D, W1, W2, KEYS, False
        )
    if whole < m:
        top, total, acc1, acc2 = online_step(
            q1, q2, k, v, kn, vn, whole, m, top, total, acc1, acc2, scale, D, W1, W2, KEYS, True
        )
    write(o, rows, c1, on, n, acc1 / total[:, None], D)
    if W2:
        write(o, rows, c2, on, n, acc2 / total[:, None], D)


@triton.jit
def weighted(p1, p2, v1, v2, TWO: tl.constexpr):
    """p v over both parts of the keys."""
    x = tl.dot(p1.to(v1.dtype), v1, input_precision="ieee")
    if TWO:
        x = tl.dot(p2.to(v2.dtype), v2, x, input_precision="ieee")
    return x


@triton.jit
def resident(
    q, k, v, o, scale, heads, n, m,
    qb, qh, qn, kb, kh, kn, vb, vh, vn, ob, oh, on,
    D: tl.constexpr, W1: tl.constexpr, W2: tl.constexpr, ROWS: tl.constexpr,
    M1: tl.constexpr, M2: tl.constexpr, TURNS: tl.constexpr,
):  # fmt: skip
    """TURNS times ROWS queries against all keys, M1 + M2 at most, which are read once."""
    i = tl.program_id(1)
    q, k = place(q, i, heads, qb, qh), place(k, i, heads, kb, kh)
    v, o = place(v, i, heads, vb, vh), place(o, i, heads, ob, oh)
    c1, m1 = tl.arange(0, W1), tl.arange(0, M1)
    k11, v11 = tile(k, m1, c1, kn, m, D, True), tile(v, m1, c1, vn, m, D, True)
    k12, k21, k22, v12, v21, v22 = k11, k11, k11, v11, v11, v11
    c2, m2 = c1, m1
    if W2:
        c2 = W1 + tl.arange(0, W2)
        k12, v12 = tile(k, m1, c2, kn, m, D, True), tile(v, m1, c2, vn, m, D, True)
    if M2:
        m2 = M1 + tl.arange(0, M2)
        k21, v21 = tile(k, m2, c1, kn, m, D, True), tile(v, m2, c1, vn, m, D, True)
        if W2:
            k22, v22 = tile(k, m2, c2, kn, m, D, True), tile(v, m2, c2, vn, m, D, True)
    for turn in range(TURNS):
        rows = (tl.program_id(0) * TURNS + turn) * ROWS + tl.arange(0, ROWS)
        q1 = tile(q, rows, c1, qn, n, D, True)
        q2 = q1
        if W2:
            q2 = tile(q, rows, c2, qn, n, D, True)
        s1 = tl.where(m1[None, :] < m, scores(q1, q2, k11, k12, W2 > 0) * scale, float("-inf"))
        s2 = s1
        top = tl.max(s1, 1)
        if M2:
            s2 = tl.where(m2[None, :] < m, scores(q1, q2, k21, k22, W2 > 0) * scale, float("-inf"))
            top = tl.maximum(top, tl.max(s2, 1))
        p1 = tl.exp2(s1 - top[:, None])
        p2 = p1
        total = tl.sum(p1, 1)
        if M2:
            p2 = tl.exp2(s2 - top[:, None])
            total += tl.sum(p2, 1)
        write(o, rows, c1, on, n, weighted(p1, p2, v11, v21, M2 > 0) / total[:, None], D)
        if W2:
            write(o, rows, c2, on, n, weighted(p1, p2, v12, v22, M2 > 0) / total[:, None], D)


def forward(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles | None = None) -> Tensor:
    """softmax(q kᵀ / √d) v. q [b h n d], k and v [b h m d], of one dtype -> [b h n d], d last in memory.

    The numbers of a head must be side by side in memory; all else may be strided, as parts of a fused
    projection are. The result's memory is [b n h d], so that joining the heads moves nothing.
    """
    (b, h, n, d), m = q.shape, k.shape[2]
    o = torch.empty(b, n, h, d, dtype=q.dtype, device=q.device).transpose(1, 2)
    tiles = tiles or tiles_for(n, m, d)
    w1, w2 = two_parts(d)
    strides = [step for x in (q, k, v, o) for step in x.stride()[:3]]
    given = (q, k, v, o, LOG2E / math.sqrt(d), h, n, m, *strides)
    shape = {"D": d, "W1": w1, "W2": w2, "ROWS": tiles.rows}
    how = {"num_warps": tiles.warps, "num_stages": tiles.stages}
    if tiles.resident:
        m1, m2 = two_parts(m)
        grid = (triton.cdiv(n, tiles.rows * tiles.turns), b * h)
        resident[grid](*given, **shape, M1=m1, M2=m2, TURNS=tiles.turns, **how)
    else:
        online[(triton.cdiv(n, tiles.rows), b * h)](*given, **shape, KEYS=tiles.keys, **how)
    return o
