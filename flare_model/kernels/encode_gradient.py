"""The gradient of encoding alone, where points are keys and values in one: one pass, one exponential a score.

B meshes, N points, H heads, D channels a head, M latents. With x the points, E = exp(s - L) the weights of encoding:

    dS = E ∘ (x dZᵀ - Δ),  Δ_m = dZ_m · Z_m
    dx = dS Q + E dZ,  dQ = dSᵀ x
"""

import triton
import triton.language as tl

from flare_model.kernels.arithmetic import exp_of_difference, load_latents, load_points, store_latents, store_points
from flare_model.kernels.mesh_slices import slice_of_mesh


@triton.jit
def encode_gradient_kernel(
    queries, points, grad_encoded, scales, mask, offsets, grad_queries, grad_points,
    num_meshes, num_points, num_latents, slice_length, search_steps, latent,
    HEADS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, NARROW: tl.constexpr, LATENTS: tl.constexpr,
    TILES: tl.constexpr, POINTS: tl.constexpr, PRECISION: tl.constexpr, JOINED: tl.constexpr, MASKED: tl.constexpr,
    ADD: tl.constexpr,
):  # fmt: skip
    """One slice of points, one head, TILES tiles of latents: dx and a share of dQ, [slices, H, M, D].

    With ADD, dx is added to what earlier latents left. scales are those of `scale_latents_kernel`.
    """
    head = tl.program_id(0) % HEADS
    slot = tl.program_id(0) // HEADS
    mesh, first, count = slice_of_mesh(slot, offsets, num_meshes, num_points, slice_length, search_steps, JOINED)
    row = mesh.to(tl.int64) * HEADS + head
    size = tl.cast(num_meshes, tl.int64) * HEADS * num_latents
    latent_terms = (scales + row * num_latents, size, latent, num_latents)
    operands = ()
    dq = ()
    for tile in tl.static_range(TILES):
        operands += (_operands(queries, grad_encoded, head, row, latent + tile * LATENTS, num_latents,
                               points.dtype.element_ty, LATENTS, DEPTH, WIDTH, NARROW),)  # fmt: skip
        dq += (tl.zeros((LATENTS, NARROW), tl.float32),)
    # Whole tiles need no mask; with a mask of points every tile does.
    whole = 0 if MASKED else tl.maximum(count, 0) // POINTS * POINTS
    for start in range(0, whole, POINTS):
        dq = _advance(dq, operands, latent_terms, points, grad_points, mask, first, start, count, head,
                      HEADS, DEPTH, WIDTH, NARROW, LATENTS, POINTS, PRECISION, MASKED, ADD, False)  # fmt: skip
    for start in range(whole, count, POINTS):
        dq = _advance(dq, operands, latent_terms, points, grad_points, mask, first, start, count, head,
                      HEADS, DEPTH, WIDTH, NARROW, LATENTS, POINTS, PRECISION, MASKED, ADD, True)  # fmt: skip
    for tile in tl.static_range(TILES):
        store_latents(grad_queries, dq[tile], slot.to(tl.int64) * HEADS + head, latent + tile * LATENTS, num_latents,
                      LATENTS, DEPTH, NARROW)  # fmt: skip


@triton.jit
def _operands(
    queries, grad_encoded, head, row, latent, num_latents,
    TYPE: tl.constexpr, LATENTS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, NARROW: tl.constexpr,
):  # fmt: skip
    """Q and dZ of a tile of latents, as wide as tiles and as narrow as results."""
    q = load_latents(queries, head, latent, num_latents, 0.0, LATENTS, DEPTH, WIDTH)
    dz = load_latents(grad_encoded, row, latent, num_latents, 0.0, LATENTS, DEPTH, WIDTH)
    narrow_q = load_latents(queries, head, latent, num_latents, 0.0, LATENTS, DEPTH, NARROW)
    narrow_dz = load_latents(grad_encoded, row, latent, num_latents, 0.0, LATENTS, DEPTH, NARROW)
    return q.to(TYPE), dz.to(TYPE), narrow_q.to(TYPE), narrow_dz.to(TYPE)


@triton.jit
def _advance(
    dq, operands, latent_terms, points, grad_points, mask, first, start, count, head,
    HEADS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, NARROW: tl.constexpr, LATENTS: tl.constexpr,
    POINTS: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr, ADD: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """One tile of points: stores dx, returns dQ with what the tile adds. With EDGE, points may be missing."""
    FLOAT32: tl.constexpr = points.dtype.element_ty == tl.float32
    scales, size, latent, num_latents = latent_terms
    x = load_points(points, first, start, count, head, 0.0, HEADS, DEPTH, WIDTH, POINTS)
    narrow_x = load_points(points, first, start, count, head, 0.0, HEADS, DEPTH, NARROW, POINTS)
    place = start + tl.arange(0, POINTS)
    exists = place < count
    if MASKED:
        exists = tl.load(mask + first + place, mask=exists, other=0) != 0
    dx = tl.zeros((POINTS, NARROW), tl.float32)
    advanced = ()
    for tile in tl.static_range(len(dq)):
        q, dz, narrow_q, narrow_dz = operands[tile]
        latents = latent + tile * LATENTS + tl.arange(0, LATENTS)
        # Where there is no latent, no point weighs anything.
        shift = tl.load(scales + latents, mask=latents < num_latents, other=-1e38)
        drop = tl.load(scales + size + latents, mask=latents < num_latents, other=0.0).to(tl.float32)
        scores = tl.dot(x, tl.trans(q), input_precision=PRECISION)
        if EDGE:
            # Where there is no point, the score is 0, but L may lie far below.
            scores = tl.where(exists[:, None], scores, float("-inf"))
        weights = exp_of_difference(scores, shift[None, :], FLOAT32)
        slope = tl.dot(x, tl.trans(dz), tl.broadcast_to(drop[None, :], scores.shape), input_precision=PRECISION)
        ds = (weights * slope).to(x.dtype)
        dx = tl.dot(weights.to(x.dtype), narrow_dz, dx, input_precision=PRECISION)
        dx = tl.dot(ds, narrow_q, dx, input_precision=PRECISION)
        advanced += (tl.dot(tl.trans(ds), narrow_x, dq[tile], input_precision=PRECISION),)
    if ADD:
        dx += load_points(grad_points, first, start, count, head, 0.0, HEADS, DEPTH, NARROW, POINTS)
    store_points(grad_points, dx, first, start, count, head, HEADS, DEPTH, NARROW, POINTS)
    return advanced
