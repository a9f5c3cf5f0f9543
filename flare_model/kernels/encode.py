"""Points into latents: softmax over the points of each mesh, in slices that a second kernel merges.

B meshes, N points, C channels, H heads, D = C / H channels a head, M latents.
"""

import triton
import triton.language as tl

from flare_model.kernels.arithmetic import (
    add_weights,
    exps_of_differences,
    in_log_unit,
    load_latents,
    load_points,
    logsumexp_of,
    no_weights,
    rescaling_factor,
    store_latents,
    sum_of_weights,
)
from flare_model.kernels.mesh_slices import row_of_queries, slice_of_mesh, slices_of_mesh


@triton.jit
def encode_kernel(
    queries, keys, values, mask, offsets, maxima, sums, moments,
    num_meshes, num_points, num_latents, slice_length, search_steps,
    HEADS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, LATENTS: tl.constexpr, POINTS: tl.constexpr,
    PRECISION: tl.constexpr, JOINED: tl.constexpr, MASKED: tl.constexpr, OWN: tl.constexpr, POLYNOMIALS: tl.constexpr,
):  # fmt: skip
    """One slice of points, one head, one tile of latents: (maximum, Σ e, Σ e·v) of the scores' exponentials.

    maxima and sums are [slices, H, M], moments [slices, H, M, D], float32; a slice of no points leaves (-∞, 0, 0).
    queries are [H, M, D]; with OWN, [B, H, M, D].
    """
    FLOAT32: tl.constexpr = keys.dtype.element_ty == tl.float32
    tiles = tl.cdiv(num_latents, LATENTS)
    head = tl.program_id(0) % HEADS
    latent = (tl.program_id(0) // HEADS) % tiles * LATENTS
    slot = tl.program_id(0) // HEADS // tiles
    mesh, first, count = slice_of_mesh(slot, offsets, num_meshes, num_points, slice_length, search_steps, JOINED)
    query_row = row_of_queries(mesh, head, HEADS, OWN)
    q = load_latents(queries, query_row, latent, num_latents, 0.0, LATENTS, DEPTH, WIDTH).to(keys.dtype.element_ty)
    maximum = tl.full((LATENTS,), float("-inf"), tl.float32)
    total = no_weights(LATENTS, DEPTH, WIDTH, FLOAT32)
    moment = tl.zeros((LATENTS, WIDTH), tl.float32)
    # Whole tiles need no mask; with a mask of points every tile does.
    whole = 0 if MASKED else tl.maximum(count, 0) // POINTS * POINTS
    for start in range(0, whole, POINTS):
        k = load_points(keys, first, start, count, head, 0.0, HEADS, DEPTH, WIDTH, POINTS)
        v = load_points(values, first, start, count, head, 1.0, HEADS, DEPTH, WIDTH, POINTS)
        maximum, total, moment = _advance(maximum, total, moment, q, k, v, None, DEPTH, WIDTH, PRECISION, POLYNOMIALS)
    for start in range(whole, count, POINTS):
        k = load_points(keys, first, start, count, head, 0.0, HEADS, DEPTH, WIDTH, POINTS)
        v = load_points(values, first, start, count, head, 1.0, HEADS, DEPTH, WIDTH, POINTS)
        points = start + tl.arange(0, POINTS)
        exists = points < count
        if MASKED:
            exists = tl.load(mask + first + points, mask=exists, other=0) != 0
        maximum, total, moment = _advance(maximum, total, moment, q, k, v, exists, DEPTH, WIDTH, PRECISION, POLYNOMIALS)
    total = sum_of_weights(total, moment, DEPTH, WIDTH)
    row = slot.to(tl.int64) * HEADS + head
    latents = latent + tl.arange(0, LATENTS)
    tl.store(maxima + row * num_latents + latents, maximum, mask=latents < num_latents)
    tl.store(sums + row * num_latents + latents, total, mask=latents < num_latents)
    store_latents(moments, moment, row, latent, num_latents, LATENTS, DEPTH, WIDTH)


@triton.jit
def _advance(
    maximum, total, moment, q, k, v, exists,
    DEPTH: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr, POLYNOMIALS: tl.constexpr,
):  # fmt: skip
    """(maximum, Σ e, Σ e·v) after one more tile of points."""
    FLOAT32: tl.constexpr = k.dtype == tl.float32
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if exists is not None:
        scores = tl.where(exists[None, :], scores, float("-inf"))
    new_maximum = tl.maximum(maximum, in_log_unit(tl.max(scores, 1), FLOAT32))
    finite_maximum = new_maximum
    if exists is not None:
        # A tile in which no point exists must not subtract -∞ from -∞.
        finite_maximum = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
    weights = exps_of_differences(scores, -finite_maximum[:, None], FLOAT32, POLYNOMIALS)
    decay = rescaling_factor(maximum, finite_maximum, FLOAT32)
    total = add_weights(total, weights, decay, k.dtype, DEPTH, WIDTH)
    moment = tl.dot(weights.to(k.dtype), v, moment * decay[:, None], input_precision=PRECISION)
    return new_maximum, total, moment


@triton.jit
def merge_encoded_kernel(
    maxima, sums, moments, offsets, encoded, logsumexps,
    num_points, num_latents, slice_length,
    HEADS: tl.constexpr, DEPTH: tl.constexpr, LATENTS: tl.constexpr, SLICES: tl.constexpr, JOINED: tl.constexpr,
    FLOAT32: tl.constexpr,
):  # fmt: skip
    """All slices of one mesh and head, one tile of latents: the latents Z and the logsumexps L = log Σ exp(scores).

    encoded is [B, H, M, D], float32, logsumexps [B, H, M]. Slices are taken in their order, so that the sums are the
    same in every run. A mesh of no points leaves zeros.
    """
    tiles = tl.cdiv(num_latents, LATENTS)
    latents = tl.program_id(0) % tiles * LATENTS + tl.arange(0, LATENTS)
    head = tl.program_id(0) // tiles % HEADS
    mesh = tl.program_id(0) // tiles // HEADS
    first, end = slices_of_mesh(mesh, offsets, num_points, slice_length, JOINED)
    channels = tl.arange(0, DEPTH)
    maximum = tl.full((LATENTS,), float("-inf"), tl.float32)
    total = tl.zeros((LATENTS,), tl.float32)
    moment = tl.zeros((LATENTS, DEPTH), tl.float32)
    for start in range(first, end, SLICES):
        slots = start + tl.arange(0, SLICES)
        exists = (slots < end)[:, None] & (latents < num_latents)[None, :]
        place = (slots.to(tl.int64) * HEADS + head)[:, None] * num_latents + latents[None, :]
        slice_maxima = tl.load(maxima + place, mask=exists, other=float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(slice_maxima, 0))
        finite_maximum = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        scales = rescaling_factor(slice_maxima, finite_maximum[None, :], FLOAT32)
        decay = rescaling_factor(maximum, finite_maximum, FLOAT32)
        total = total * decay + tl.sum(tl.load(sums + place, mask=exists, other=0.0) * scales, 0)
        parts = tl.load(moments + place[:, :, None] * DEPTH + channels[None, None, :],
                        mask=exists[:, :, None], other=0.0)  # fmt: skip
        moment = moment * decay[:, None] + tl.sum(parts * scales[:, :, None], 0)
        maximum = new_maximum
    nothing = total == 0.0
    total = tl.where(nothing, 1.0, total)
    maximum = tl.where(nothing, 0.0, maximum)
    place = (mesh.to(tl.int64) * HEADS + head) * num_latents + latents
    tl.store(logsumexps + place, logsumexp_of(maximum, total, FLOAT32), mask=latents < num_latents)
    tl.store(encoded + place[:, None] * DEPTH + channels[None, :], moment / total[:, None],
             mask=(latents < num_latents)[:, None])  # fmt: skip
