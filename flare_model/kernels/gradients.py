"""The backward pass: two passes over the points, which compute scores and exponentials again and store none.

B meshes, N points, C channels, H heads, D = C / H channels a head, M latents. With s the scores, P = exp(s - l) the
weights of decoding and E = exp(s - L) those of encoding:

    dZ = Pᵀ dY
    dV = E dZ
    dS = P ∘ (dY Zᵀ - δ) + E ∘ (V dZᵀ - Δ),  δ_n = dY_n · Y_n,  Δ_m = dZ_m · Z_m
    dK = dS Q,  dQ = dSᵀ K
"""

import triton
import triton.language as tl

from flare_model.kernels.arithmetic import (
    as_shift,
    exp_of_difference,
    load_latents,
    load_points,
    store_latents,
    store_points,
)
from flare_model.kernels.meshes import slice_of_mesh, slices_of_mesh


@triton.jit
def latent_gradient_kernel(
    queries, keys, grad_decoded, normalisers, offsets, grad_encoded,
    num_meshes, num_points, num_latents, total_points, slice_length, search_steps,
    HEADS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, LATENTS: tl.constexpr, POINTS: tl.constexpr,
    PRECISION: tl.constexpr, JOINED: tl.constexpr,
):  # fmt: skip
    """Pass one. One slice of points, one head, one tile of latents: its share of dZ, [slices, H, M, D], float32."""
    EXACT: tl.constexpr = keys.dtype.element_ty == tl.float32
    tiles = tl.cdiv(num_latents, LATENTS)
    head = tl.program_id(0) % HEADS
    latent = (tl.program_id(0) // HEADS) % tiles * LATENTS
    slot = tl.program_id(0) // HEADS // tiles
    _, first, count = slice_of_mesh(slot, offsets, num_meshes, num_points, slice_length, search_steps, JOINED)
    q = load_latents(queries, head, latent, num_latents, 0.0, LATENTS, DEPTH, WIDTH).to(keys.dtype.element_ty)
    gradient = tl.zeros((LATENTS, WIDTH), tl.float32)
    for start in range(0, count, POINTS):
        k = load_points(keys, first, start, count, head, 0.0, HEADS, DEPTH, WIDTH, POINTS)
        dy = load_points(grad_decoded, first, start, count, head, 0.0, HEADS, DEPTH, WIDTH, POINTS)
        points = start + tl.arange(0, POINTS)
        # Where there is no point, dy is 0 and the weight 1.
        row = normalisers + head.to(tl.int64) * total_points + first
        normaliser = tl.load(row + points, mask=points < count, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        weights = exp_of_difference(scores, as_shift(normaliser, EXACT)[None, :], EXACT)
        gradient = tl.dot(weights.to(k.dtype), dy, gradient, input_precision=PRECISION)
    store_latents(grad_encoded, gradient, slot.to(tl.int64) * HEADS + head, latent, num_latents, LATENTS, DEPTH, WIDTH)


@triton.jit
def sum_slices_kernel(
    parts, offsets, sums, num_points, size, slice_length,
    VALUES: tl.constexpr, SLICES: tl.constexpr, JOINED: tl.constexpr,
):  # fmt: skip
    """Sum over the slices of one mesh, in their order: [slices, size] to [B, size], both float32."""
    tiles = tl.cdiv(size, VALUES)
    place = tl.program_id(0) % tiles * VALUES + tl.arange(0, VALUES)
    mesh = tl.program_id(0) // tiles
    first, end = slices_of_mesh(mesh, offsets, num_points, slice_length, JOINED)
    total = tl.zeros((VALUES,), tl.float32)
    for start in range(first, end, SLICES):
        slots = start + tl.arange(0, SLICES)
        exists = (slots < end)[:, None] & (place < size)[None, :]
        total += tl.sum(tl.load(parts + slots.to(tl.int64)[:, None] * size + place[None, :], mask=exists, other=0.0), 0)
    tl.store(sums + mesh.to(tl.int64) * size + place, total, mask=place < size)


@triton.jit
def point_gradient_kernel(
    queries, keys, values, decoded, grad_decoded, point_normalisers, encoded, grad_encoded, latent_shifts, deltas,
    mask, offsets, grad_queries, grad_keys, grad_values,
    num_meshes, num_points, num_latents, total_points, slice_length, search_steps, latent,
    HEADS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, LATENTS: tl.constexpr, TILES: tl.constexpr,
    POINTS: tl.constexpr, PRECISION: tl.constexpr, JOINED: tl.constexpr, MASKED: tl.constexpr,
    UNEVEN: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Pass two. One slice of points, one head, TILES tiles of latents: dK, dV and a share of dQ, [slices, H, M, D].

    latent_shifts is what `as_shift` makes of L, deltas are -Δ, both [B, H, M], float32. With ADD, dK and dV are added
    to what earlier latents left.
    """
    head = tl.program_id(0) % HEADS
    slot = tl.program_id(0) // HEADS
    mesh, first, count = slice_of_mesh(slot, offsets, num_meshes, num_points, slice_length, search_steps, JOINED)
    row = mesh.to(tl.int64) * HEADS + head
    levels = (latent_shifts + row * num_latents, deltas + row * num_latents, latent, num_latents)
    operands = ()
    dq = ()
    for tile in tl.static_range(TILES):
        operands += (_operands(queries, encoded, grad_encoded, head, row, latent + tile * LATENTS, num_latents,
                               keys.dtype.element_ty, LATENTS, DEPTH, WIDTH),)  # fmt: skip
        dq += (tl.zeros((LATENTS, WIDTH), tl.float32),)
    points = (keys, values, decoded, grad_decoded, point_normalisers + head.to(tl.int64) * total_points, mask)
    # Whole tiles need no mask; with a mask of points every tile does.
    whole = 0 if MASKED else tl.maximum(count, 0) // POINTS * POINTS
    for start in range(0, whole, POINTS):
        dq = _advance(dq, operands, levels, points, grad_keys, grad_values, first, start, count, head,
                      HEADS, DEPTH, WIDTH, POINTS, PRECISION, MASKED, UNEVEN, ADD, False)  # fmt: skip
    for start in range(whole, count, POINTS):
        dq = _advance(dq, operands, levels, points, grad_keys, grad_values, first, start, count, head,
                      HEADS, DEPTH, WIDTH, POINTS, PRECISION, MASKED, UNEVEN, ADD, True)  # fmt: skip
    for tile in tl.static_range(TILES):
        store_latents(grad_queries, dq[tile], slot.to(tl.int64) * HEADS + head, latent + tile * LATENTS, num_latents,
                      LATENTS, DEPTH, WIDTH)  # fmt: skip


@triton.jit
def _operands(
    queries, encoded, grad_encoded, head, row, latent, num_latents,
    TYPE: tl.constexpr, LATENTS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """What a tile of latents brings to the products: Q, Z, dZ."""
    q = load_latents(queries, head, latent, num_latents, 0.0, LATENTS, DEPTH, WIDTH)
    z = load_latents(encoded, row, latent, num_latents, 0.0, LATENTS, DEPTH, WIDTH)
    dz = load_latents(grad_encoded, row, latent, num_latents, 0.0, LATENTS, DEPTH, WIDTH)
    return q.to(TYPE), z.to(TYPE), dz.to(TYPE)


@triton.jit
def _advance(
    dq, operands, levels, points, grad_keys, grad_values, first, start, count, head,
    HEADS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, POINTS: tl.constexpr, PRECISION: tl.constexpr,
    MASKED: tl.constexpr, UNEVEN: tl.constexpr, ADD: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """One tile of points: stores dK and dV, returns dQ with what the tile adds. With EDGE, points may be missing."""
    keys, values, decoded, grad_decoded, normalisers, mask = points
    k = load_points(keys, first, start, count, head, 0.0, HEADS, DEPTH, WIDTH, POINTS)
    v = load_points(values, first, start, count, head, 0.0, HEADS, DEPTH, WIDTH, POINTS)
    y = load_points(decoded, first, start, count, head, 0.0, HEADS, DEPTH, WIDTH, POINTS)
    dy = load_points(grad_decoded, first, start, count, head, 0.0, HEADS, DEPTH, WIDTH, POINTS)
    place = start + tl.arange(0, POINTS)
    exists = place < count
    normaliser = tl.load(normalisers + first + place, mask=exists, other=0.0)
    if MASKED:
        exists = tl.load(mask + first + place, mask=exists, other=0) != 0
    delta = tl.sum(dy.to(tl.float32) * y.to(tl.float32), 1)
    dk = tl.zeros((POINTS, WIDTH), tl.float32)
    dv = tl.zeros((POINTS, WIDTH), tl.float32)
    if ADD:
        dk += load_points(grad_keys, first, start, count, head, 0.0, HEADS, DEPTH, WIDTH, POINTS)
        dv += load_points(grad_values, first, start, count, head, 0.0, HEADS, DEPTH, WIDTH, POINTS)
    advanced = ()
    for tile in tl.static_range(len(dq)):
        ds, dv = _differentiate(k, v, dy, normaliser, delta, exists, dv, operands[tile], levels, tile,
                                PRECISION, UNEVEN, EDGE)  # fmt: skip
        dk = tl.dot(ds, operands[tile][0], dk, input_precision=PRECISION)
        advanced += (tl.dot(tl.trans(ds), k, dq[tile], input_precision=PRECISION),)
    store_points(grad_keys, dk, first, start, count, head, HEADS, DEPTH, WIDTH, POINTS)
    store_points(grad_values, dv, first, start, count, head, HEADS, DEPTH, WIDTH, POINTS)
    return advanced


@triton.jit
def _differentiate(
    k, v, dy, normaliser, delta, exists, dv, operands, levels, tile,
    PRECISION: tl.constexpr, UNEVEN: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Gradients of the scores, [POINTS, LATENTS], and dV with what a tile of latents adds, [POINTS, WIDTH]."""
    EXACT: tl.constexpr = k.dtype == tl.float32
    LATENTS: tl.constexpr = operands[0].shape[0]
    q, z, dz = operands
    shifts, deltas, latent, num_latents = levels
    # Read again for every tile: kept, they would take as many registers as the weights.
    latents = latent + tile * LATENTS + tl.arange(0, LATENTS)
    # Where there is no latent, no point weighs anything in its encoding.
    shift = tl.load(shifts + latents, mask=latents < num_latents if UNEVEN else None, other=float("-inf") if UNEVEN else None)
    drop = tl.load(deltas + latents, mask=latents < num_latents if UNEVEN else None, other=0.0 if UNEVEN else None)
    scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
    among_points = scores
    if EDGE:
        # Where there is no point, the score is 0, but L may lie far below.
        among_points = tl.where(exists[:, None], scores, float("-inf"))
    encoding = exp_of_difference(among_points, shift[None, :], EXACT)
    dv = tl.dot(encoding.to(k.dtype), dz, dv, input_precision=PRECISION)
    start = tl.broadcast_to(drop[None, :], scores.shape)
    ds = encoding * tl.dot(v, tl.trans(dz), start, input_precision=PRECISION)
    decoding = exp_of_difference(scores, as_shift(normaliser, EXACT)[:, None], EXACT)
    if UNEVEN:
        decoding = tl.where((latents < num_latents)[None, :], decoding, 0.0)
    start = tl.broadcast_to(-delta[:, None], scores.shape)
    ds += decoding * tl.dot(dy, tl.trans(z), start, input_precision=PRECISION)
    return ds.to(k.dtype), dv
