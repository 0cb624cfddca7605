"""log E[softmax(loc + noise)] and its gradients as fused Triton kernels: the noise is made where it is used.

With e ~ N(0, 1) per sample and class and z ~ N(0, 1) per sample and rank, the logits of sample s are

    l[s, k] = loc[k] + scale[k] e[s, k] + lowrank[s, k],   lowrank = F z (full),  gain * (V z) (pe),  0 (diag).

Forward: lse[s] = logsumexp_k l[s, k], log p[k] = logsumexp_s(l[s, k] - lse[s]) - log S. Backward, g being dL/dlog p:

    w[s, k] = exp(l[s, k] - lse[s] - log p[k] - log S)   (sums to 1 over s; never overflows, however small p is)
    a[s] = sum_k g[k] w[s, k],   dL/dl[s, k] = w[s, k] (g[k] - S p[k] a[s]).

That is two passes over samples x classes each way, one kernel a pass: `_rows` (for lse and for a) runs over classes for
a block of samples, `_average` and `_gradients` over samples for a block of classes. Each makes e again (Philox counters
are (column, sample // 4, example, 0): any tile can be made anywhere). Nothing of size samples x classes is stored, only
lse [B, S], a [B, S] and z [R, S] ([B, R, S] for draws per example).

What limits speed on a GPU, counted in machine code for sm_90 and not yet timed on one: a normal takes about 37
instructions; an element of a diag pass 10 to 15, its exp2 and its share of a normal included (an exp2 is as dear as 8);
with R = 15 full takes 40 to 45, and 83 in `_gradients`. So shared draws are made once for a tile [samples, classes] and
used for several examples. Tiles are [samples, examples * classes], classes innermost, along the 32 threads of the one
warp that is a program: a thread owns whole columns, so that sums over samples stay in its registers, sums over classes
are kept per column until the end, and low-rank products are float32 multiply-adds on cached loads.

Sums run in a fixed order (no atomics; block sizes depend on shapes alone), so equal calls give equal bits. `_triton`
launches the kernels.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,import-not-found"
from __future__ import annotations

from typing import Any

try:
    import triton
    import triton.language as tl
except ImportError:  # torch comes without Triton on some platforms
    triton = tl = None

_jit: Any = triton.jit if triton is not None else lambda function: function

_DIAG, _FULL, _PE = 0, 1, 2  # KIND of the kernels, which cannot read these names


# ---------------------------------------------------------------- noise


@_jit
def _box_muller(first, second):
    """Two words of random bits -> two normals; the first word gives the radius, the second the angle."""
    uniform = first.to(tl.float32) * (1.0 / 4294967296.0) + (1.0 / 8589934592.0)  # in [2^-33, 1]: its log is finite
    radius = tl.sqrt(-2.0 * tl.log(uniform))
    # The angle is 2 pi second / 2^32 = quarter * pi/2 + rest, |rest| <= pi/4, where short polynomials are right to
    # an ulp or two: the general sin and cos carry code for huge arguments.
    quarter = (second + 0x20000000) >> 30
    rest = (second - (quarter << 30)).to(tl.int32, bitcast=True).to(tl.float32) * (1.5707963267948966 / 1073741824.0)
    square = rest * rest
    sine = ((-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1) * square * rest + rest
    cosine = ((2.443315711809948e-5 * square - 1.388731625493765e-3) * square + 4.166664568298827e-2) * square * square
    cosine += 1.0 - 0.5 * square
    swap = (quarter & 1) != 0
    x = tl.where(swap, sine, cosine)
    y = tl.where(swap, cosine, sine)
    x = tl.where(((quarter + 1) & 2) != 0, -x, x)
    y = tl.where((quarter & 2) != 0, -y, y)
    return radius * x, radius * y


@_jit
def _noise(seed, first_sample, column, example, SAMPLES: tl.constexpr, ANTITHETIC: tl.constexpr):
    """Normals [SAMPLES, columns] from first_sample, a multiple of 4: a call's four words are four samples."""
    call = first_sample // 4 + tl.arange(0, SAMPLES // 4)
    c0, c1, c2, c3 = tl.philox(seed, column[None, :], call[:, None], example, 0)
    n0, n1 = _box_muller(c0, c1)
    if ANTITHETIC:
        n2, n3 = n1, -n1
        n1 = -n0
    else:
        n2, n3 = _box_muller(c2, c3)
    # Words become rows: only a renaming of registers, for threads lie along the columns.
    words = tl.join(tl.join(n0, n2), tl.join(n1, n3))
    return tl.reshape(tl.permute(words, (0, 2, 3, 1)), (SAMPLES, column.shape[0]))


@_jit
def _spread(x, BB: tl.constexpr):
    """[samples, classes] -> [samples, BB * classes]: the same for every example of the block."""
    wide = tl.broadcast_to(x[:, None, :], (x.shape[0], BB, x.shape[1]))
    return tl.reshape(wide, (x.shape[0], BB * x.shape[1]))


@_jit
def _widen(x, BK: tl.constexpr):
    """[samples, examples] -> [samples, examples * BK]: the same for every class of the block."""
    wide = tl.broadcast_to(x[:, :, None], (x.shape[0], x.shape[1], BK))
    return tl.reshape(wide, (x.shape[0], x.shape[1] * BK))


# ---------------------------------------------------------------- tiles


@_jit
def _product(start, z_s, f_n, K, R, SP):
    """start [samples, n] + sum_r z[r, s] f[r, n], from pointers to r = 0: z [R, SP], f [R, K]. Unmasked: for speed."""
    for r in range(0, R):
        start += tl.load(z_s + r * SP)[:, None] * tl.load(f_n + r * K)[None, :]
    return start


@_jit
def _load_columns(loc, scale, gain, b, k, B, K, KIND: tl.constexpr):
    """loc, scale and gain of columns [n]; a column outside has a logit that no sum sees, and finite."""
    at = b * K + k
    inside = (b < B) & (k < K)
    loc_n = tl.load(loc + at, mask=inside, other=-1e30)
    scale_n = tl.load(scale + at, mask=inside, other=0.0)
    gain_n = tl.load(gain + at, mask=inside, other=0.0) if KIND == 2 else scale_n
    return at, inside, loc_n, scale_n, gain_n


@_jit
def _locate_z(z, example, sample, R, SP, KIND: tl.constexpr):
    """Pointers to z[example, 0, sample]."""
    return z + tl.to_tensor(example).to(tl.int64) * R * SP + sample if KIND != 0 else z


@_jit
def _logits(seed, example, first_sample, z_s, loc_n, scale_n, gain_n, factors, b, first_class, k, B, K, R, SP,
            KIND: tl.constexpr, ANTITHETIC: tl.constexpr,
            BB: tl.constexpr, BK: tl.constexpr, BS: tl.constexpr):  # fmt: skip
    """A tile of (logits [samples, n], e [samples, n], V z [samples, n] for pe)."""
    e = _spread(_noise(seed, first_sample, R + first_class + tl.arange(0, BK), example, BS, ANTITHETIC), BB)
    logits = loc_n[None, :] + scale_n[None, :] * e
    low_rank = e
    # Columns outside read a neighbour's factors: finite, and lost in a logit of -1e30.
    if KIND == 1:
        f_n = factors + tl.minimum(b, B - 1).to(tl.int64) * R * K + tl.minimum(k, K - 1)
        logits = _product(logits, z_s, f_n, K, R, SP)
    if KIND == 2:
        v_k = factors + tl.minimum(first_class + tl.arange(0, BK), K - 1)
        low_rank = _spread(_product(tl.zeros((BS, BK), tl.float32), z_s, v_k, K, R, SP), BB)
        logits += gain_n[None, :] * low_rank
    return logits, e, low_rank


# ---------------------------------------------------------------- kernels; inputs in units of log 2, for exp2


@_jit
def _rows(out, seed_at, loc, scale, factors, gain, z, grad, lse, B, K, R, S, SP, classes_each,
          BACKWARD: tl.constexpr, KIND: tl.constexpr, PER_EXAMPLE: tl.constexpr, ANTITHETIC: tl.constexpr,
          BB: tl.constexpr, BK: tl.constexpr, BS: tl.constexpr):  # fmt: skip
    """out [parts, B, S], a block of it: lse over a part of the classes; or a, if `loc` is less log p + log S."""
    seed = tl.load(seed_at)
    first_sample = tl.program_id(0) * BS
    first_example = tl.program_id(1) * BB
    example = first_example if PER_EXAMPLE else 0
    sample = first_sample + tl.arange(0, BS)
    example_b = first_example + tl.arange(0, BB)
    at = example_b[None, :] * S + sample[:, None]
    present = (example_b < B)[None, :] & (sample < S)[:, None]
    n = tl.arange(0, BB * BK)
    b = first_example + n // BK
    z_s = _locate_z(z, example, sample, R, SP, KIND)
    total = tl.zeros((BS, BB * BK), tl.float32)
    top = total - 1e30
    norm = total
    if BACKWARD:
        norm = _widen(tl.load(lse + at, mask=present, other=1e30), BK)

    begin = tl.program_id(2) * classes_each
    for first_class in range(begin, min(begin + classes_each, K), BK):
        k = first_class + n % BK
        at_n, inside, loc_n, scale_n, gain_n = _load_columns(loc, scale, gain, b, k, B, K, KIND)
        logits, _, _ = _logits(seed, example, first_sample, z_s, loc_n, scale_n, gain_n, factors, b,
                               first_class, k, B, K, R, SP, KIND, ANTITHETIC, BB, BK, BS)  # fmt: skip
        if BACKWARD:
            total += tl.load(grad + at_n, mask=inside, other=0.0)[None, :] * tl.exp2(logits - norm)
        else:
            # A running sum relative to its largest term. One exp2 whichever is larger: exp2(0) needs none.
            less = tl.exp2(-tl.abs(logits - top))
            total = tl.where(logits > top, total * less + 1.0, total + less)
            top = tl.maximum(top, logits)

    total = tl.reshape(total, (BS, BB, BK))
    if BACKWARD:
        result = tl.sum(total, 2)
    else:
        top = tl.reshape(top, (BS, BB, BK))
        highest = tl.max(top, 2)
        result = highest + tl.log2(tl.sum(total * tl.exp2(top - highest[:, :, None]), 2))
    tl.store(out + tl.program_id(2) * B * S + at, result, mask=present)


@_jit
def _average(out, seed_at, loc, scale, factors, gain, z, lse, B, K, R, S, SP, samples_each,
             KIND: tl.constexpr, PER_EXAMPLE: tl.constexpr, ANTITHETIC: tl.constexpr,
             BB: tl.constexpr, BK: tl.constexpr, BS: tl.constexpr):  # fmt: skip
    """out [parts, B, K], a block of classes and examples: logsumexp over a part of the samples of l - lse."""
    seed = tl.load(seed_at)
    first_example = tl.program_id(1) * BB
    example = first_example if PER_EXAMPLE else 0
    example_b = first_example + tl.arange(0, BB)
    n = tl.arange(0, BB * BK)
    b = first_example + n // BK
    first_class = tl.program_id(0) * BK
    k = first_class + n % BK
    at_n, inside, loc_n, scale_n, gain_n = _load_columns(loc, scale, gain, b, k, B, K, KIND)
    total = tl.zeros((BB * BK,), tl.float32)
    top = total - 1e30
    begin = tl.program_id(2) * samples_each
    for first_sample in range(begin, min(begin + samples_each, S), BS):
        first_sample = tl.multiple_of(first_sample, BS)
        sample = first_sample + tl.arange(0, BS)
        z_s = _locate_z(z, example, sample, R, SP, KIND)
        present = (example_b < B)[None, :] & (sample < S)[:, None]
        norm = _widen(tl.load(lse + example_b[None, :] * S + sample[:, None], mask=present, other=1e30), BK)
        logits, _, _ = _logits(seed, example, first_sample, z_s, loc_n, scale_n, gain_n, factors, b,
                               first_class, k, B, K, R, SP, KIND, ANTITHETIC, BB, BK, BS)  # fmt: skip
        logits -= norm
        highest = tl.maximum(top, tl.max(logits, 0))
        total = total * tl.exp2(top - highest) + tl.sum(tl.exp2(logits - highest[None, :]), 0)
        top = highest
    tl.store(out + tl.program_id(2) * B * K + at_n, top + tl.log2(total), mask=inside)


@_jit
def _gradients(d_loc, d_scale, d_factors, d_gain, seed_at, loc, scale, factors, gain, z, grad, weight, lse, row_sums,
               B, K, R, S, SP, samples_each,
               KIND: tl.constexpr, PER_EXAMPLE: tl.constexpr, ANTITHETIC: tl.constexpr,
               RP: tl.constexpr, BB: tl.constexpr, BK: tl.constexpr, BS: tl.constexpr):  # fmt: skip
    """Sums over a part of the samples of dL/dl times what multiplies each input: [parts, ...]; `weight` is S p.

    For pe a program takes every num_programs(1)-th block of examples, and d_factors is [parts, num_programs(1), R, K].
    """
    seed = tl.load(seed_at)
    part = tl.program_id(2)
    begin = part * samples_each
    n = tl.arange(0, BB * BK)
    first_class = tl.program_id(0) * BK
    k = first_class + n % BK
    r = tl.arange(0, RP)
    d_f = tl.zeros((RP, BK if KIND == 2 else BB * BK), tl.float32)
    for first_example in range(tl.program_id(1) * BB, B, tl.num_programs(1) * BB):
        example = first_example if PER_EXAMPLE else 0
        example_b = first_example + tl.arange(0, BB)
        b = first_example + n // BK
        at_n, inside, loc_n, scale_n, gain_n = _load_columns(loc, scale, gain, b, k, B, K, KIND)
        grad_n = tl.load(grad + at_n, mask=inside, other=0.0)
        weight_n = tl.load(weight + at_n, mask=inside, other=0.0)
        sum_loc = tl.zeros((BB * BK,), tl.float32)
        sum_scale = tl.zeros((BB * BK,), tl.float32)
        sum_gain = tl.zeros((BB * BK,), tl.float32)
        for first_sample in range(begin, min(begin + samples_each, S), BS):
            first_sample = tl.multiple_of(first_sample, BS)
            sample = first_sample + tl.arange(0, BS)
            z_s = _locate_z(z, example, sample, R, SP, KIND)
            at = example_b[None, :] * S + sample[:, None]
            present = (example_b < B)[None, :] & (sample < S)[:, None]
            norm = _widen(tl.load(lse + at, mask=present, other=1e30), BK)  # absent: exp2 is 0, and so are all terms
            a = _widen(tl.load(row_sums + at, mask=present, other=0.0), BK)
            logits, e, low_rank = _logits(seed, example, first_sample, z_s, loc_n, scale_n, gain_n, factors, b,
                                          first_class, k, B, K, R, SP, KIND, ANTITHETIC, BB, BK, BS)  # fmt: skip
            d_l = tl.exp2(logits - norm) * (grad_n[None, :] - weight_n[None, :] * a)
            sum_loc += tl.sum(d_l, 0)
            sum_scale += tl.sum(d_l * e, 0)
            if KIND == 2:
                sum_gain += tl.sum(d_l * low_rank, 0)
                d_l = tl.sum(tl.reshape(d_l * gain_n[None, :], (BS, BB, BK)), 1)
            if KIND != 0:
                z_sr = tl.load(z_s[:, None] + r[None, :] * SP, mask=(r < R)[None, :], other=0.0)
                d_f += tl.sum(z_sr[:, :, None] * d_l[:, None, :], 0)
        at_n += part * B * K
        tl.store(d_loc + at_n, sum_loc, mask=inside)
        tl.store(d_scale + at_n, sum_scale, mask=inside)
        if KIND == 1:
            at_f = ((part * B + b).to(tl.int64) * R * K + k)[None, :] + r[:, None] * K
            tl.store(d_factors + at_f, d_f, mask=(r < R)[:, None] & inside[None, :])
        if KIND == 2:
            tl.store(d_gain + at_n, sum_gain, mask=inside)
    if KIND == 2:
        k1 = first_class + tl.arange(0, BK)
        at_v = (part * tl.num_programs(1) + tl.program_id(1)) * R * K + r[:, None] * K + k1[None, :]
        tl.store(d_factors + at_v, d_f, mask=(r < R)[:, None] & (k1 < K)[None, :])


@_jit
def _draws(out, seed_at, S, columns, sample_stride, column_stride, example_stride,
           PER_EXAMPLE: tl.constexpr, ANTITHETIC: tl.constexpr, BK: tl.constexpr, BS: tl.constexpr):  # fmt: skip
    """out: a tile of the draws of one example, wherever the strides put it."""
    example = tl.program_id(2) if PER_EXAMPLE else 0
    column = tl.program_id(1) * BK + tl.arange(0, BK)
    first_sample = tl.program_id(0) * BS
    sample = first_sample + tl.arange(0, BS)
    x = _noise(tl.load(seed_at), first_sample, column, example, BS, ANTITHETIC)
    out += tl.program_id(2).to(tl.int64) * example_stride
    at = sample[:, None] * sample_stride + column[None, :] * column_stride
    tl.store(out + at, x, mask=(sample < S)[:, None] & (column < columns)[None, :])
