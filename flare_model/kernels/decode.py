"""Latents onto points: softmax over the latents at every point.

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
    store_points,
    sum_of_weights,
)
from flare_model.kernels.mesh_slices import row_of_queries, slice_of_mesh


@triton.jit
def decode_kernel(
    queries, keys, encoded, offsets, decoded, logsumexps,
    num_meshes, num_points, num_latents, total_points, slice_length, search_steps,
    HEADS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, LATENTS: tl.constexpr, TILES: tl.constexpr,
    POINTS: tl.constexpr, PRECISION: tl.constexpr, JOINED: tl.constexpr, UNEVEN: tl.constexpr, OWN: tl.constexpr,
    POLYNOMIALS: tl.constexpr,
):  # fmt: skip
    """One slice of points, one head: the mixed values y, and the logsumexps l = log Σ exp(scores) over the latents.

    decoded is [ΣN, H, D] in the type of the keys, logsumexps [H, ΣN]; queries are [H, M, D], with OWN [B, H, M, D].
    """
    FLOAT32: tl.constexpr = keys.dtype.element_ty == tl.float32
    head = tl.program_id(0) % HEADS
    slot = tl.program_id(0) // HEADS
    mesh, first, count = slice_of_mesh(slot, offsets, num_meshes, num_points, slice_length, search_steps, JOINED)
    row = mesh.to(tl.int64) * HEADS + head
    query_row = row_of_queries(mesh, head, HEADS, OWN)
    q, z = _operands(queries, encoded, query_row, row, 0, num_latents, keys.dtype.element_ty, LATENTS, DEPTH, WIDTH)
    for start in range(0, count, POINTS):
        k = load_points(keys, first, start, count, head, 0.0, HEADS, DEPTH, WIDTH, POINTS)
        maximum = tl.full((POINTS,), float("-inf"), tl.float32)
        total = no_weights(POINTS, DEPTH, WIDTH, FLOAT32)
        moment = tl.zeros((POINTS, WIDTH), tl.float32)
        maximum, total, moment = _advance(maximum, total, moment, k, q, z, 0, num_latents,
                                      LATENTS, DEPTH, WIDTH, PRECISION, UNEVEN, POLYNOMIALS)  # fmt: skip
        for tile in range(1, TILES):
            latent = tile * LATENTS
            more_q, more_z = _operands(queries, encoded, query_row, row, latent, num_latents, k.dtype,
                                       LATENTS, DEPTH, WIDTH)  # fmt: skip
            maximum, total, moment = _advance(maximum, total, moment, k, more_q, more_z, latent, num_latents,
                                          LATENTS, DEPTH, WIDTH, PRECISION, UNEVEN, POLYNOMIALS)  # fmt: skip
        total = sum_of_weights(total, moment, DEPTH, WIDTH)
        points = start + tl.arange(0, POINTS)
        tl.store(logsumexps + head.to(tl.int64) * total_points + first + points, logsumexp_of(maximum, total, FLOAT32),
                 mask=points < count)  # fmt: skip
        store_points(decoded, moment * (1.0 / total)[:, None], first, start, count, head, HEADS, DEPTH, WIDTH, POINTS)


@triton.jit
def _operands(
    queries, encoded, query_row, row, latent, num_latents,
    TYPE: tl.constexpr, LATENTS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Queries, of the row `query_row`, and encoded values of a tile of latents; spare channels of these hold ones."""
    q = load_latents(queries, query_row, latent, num_latents, 0.0, LATENTS, DEPTH, WIDTH)
    z = load_latents(encoded, row, latent, num_latents, 1.0, LATENTS, DEPTH, WIDTH)
    return q.to(TYPE), z.to(TYPE)


@triton.jit
def _advance(
    maximum, total, moment, k, q, z, latent, num_latents,
    LATENTS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr, UNEVEN: tl.constexpr,
    POLYNOMIALS: tl.constexpr,
):  # fmt: skip
    """(maximum, Σ e, Σ e·z) after one more tile of latents."""
    FLOAT32: tl.constexpr = k.dtype == tl.float32
    scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
    if UNEVEN:
        scores = tl.where((latent + tl.arange(0, LATENTS) < num_latents)[None, :], scores, float("-inf"))
    new_maximum = tl.maximum(maximum, in_log_unit(tl.max(scores, 1), FLOAT32))
    weights = exps_of_differences(scores, -new_maximum[:, None], FLOAT32, POLYNOMIALS)
    decay = rescaling_factor(maximum, new_maximum, FLOAT32)
    total = add_weights(total, weights, decay, k.dtype, DEPTH, WIDTH)
    moment = tl.dot(weights.to(k.dtype), z, moment * decay[:, None], input_precision=PRECISION)
    return new_maximum, total, moment
