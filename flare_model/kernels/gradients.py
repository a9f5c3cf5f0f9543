"""The backward pass: two passes over the points, which compute scores and exponentials again and store none.

B meshes, N points, C channels, H heads, D = C / H channels a head, M latents; queries are [H, M, D], or with OWN, where
every mesh has queries of its own, [B, H, M, D]. With s the scores, P = exp(s - l) the weights of decoding and
E = exp(s - L) those of encoding:

    dZ = Pᵀ dY
    dV = E dZ
    dS = P ∘ (dY Zᵀ - δ) + E ∘ (V dZᵀ - Δ),  δ_n = dY_n · Y_n,  Δ_m = dZ_m · Z_m
    dK = dS Q,  dQ = dSᵀ K

l and L are logsumexps, of the points and of the latents; see [arithmetic][flare_model.kernels.arithmetic]. The
exponentials take most of the time, and E = P ∘ a bᵀ with a = exp(l - c), b = exp(c - L): where no factor leaves the
range of float32, one exponential does for both, and

    dS = P ∘ (dY Zᵀ + (a V) (b dZ)ᵀ - δ - a bΔ)

is one sum. That is the fast path; c is the largest L.
"""

import triton
import triton.language as tl

from flare_model.kernels.arithmetic import (
    exp_of_difference,
    exps_of_differences,
    load_latents,
    load_points,
    slope_type,
    store_latents,
    store_points,
)
from flare_model.kernels.mesh_slices import row_of_queries, slice_of_mesh, slices_of_mesh


@triton.jit
def latent_gradient_kernel(
    queries, keys, grad_decoded, logsumexps, offsets, grad_encoded,
    num_meshes, num_points, num_latents, total_points, slice_length, search_steps,
    HEADS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, NARROW: tl.constexpr, LATENTS: tl.constexpr,
    POINTS: tl.constexpr, PRECISION: tl.constexpr, JOINED: tl.constexpr, OWN: tl.constexpr, POLYNOMIALS: tl.constexpr,
):  # fmt: skip
    """Pass one. One slice of points, one head, one tile of latents: its share of dZ, [slices, H, M, D], float32."""
    FLOAT32: tl.constexpr = keys.dtype.element_ty == tl.float32
    tiles = tl.cdiv(num_latents, LATENTS)
    head = tl.program_id(0) % HEADS
    latent = (tl.program_id(0) // HEADS) % tiles * LATENTS
    slot = tl.program_id(0) // HEADS // tiles
    mesh, first, count = slice_of_mesh(slot, offsets, num_meshes, num_points, slice_length, search_steps, JOINED)
    query_row = row_of_queries(mesh, head, HEADS, OWN)
    q = load_latents(queries, query_row, latent, num_latents, 0.0, LATENTS, DEPTH, WIDTH).to(keys.dtype.element_ty)
    gradient = tl.zeros((LATENTS, NARROW), tl.float32)
    for start in range(0, count, POINTS):
        k = load_points(keys, first, start, count, head, 0.0, HEADS, DEPTH, WIDTH, POINTS)
        dy = load_points(grad_decoded, first, start, count, head, 0.0, HEADS, DEPTH, NARROW, POINTS)
        points = start + tl.arange(0, POINTS)
        # Where there is no point, dy is 0 and the weight 1.
        row = logsumexps + head.to(tl.int64) * total_points + first
        logsumexp = tl.load(row + points, mask=points < count, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        weights = exps_of_differences(scores, -logsumexp[None, :], FLOAT32, POLYNOMIALS)
        gradient = tl.dot(weights.to(k.dtype), dy, gradient, input_precision=PRECISION)
    store_latents(grad_encoded, gradient, slot.to(tl.int64) * HEADS + head, latent, num_latents, LATENTS, DEPTH, NARROW)


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
def scale_latents_kernel(
    encoded, grad_encoded, logsumexps, scales, bounds, size, num_latents,
    DEPTH: tl.constexpr, LATENTS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Values of the latents of one mesh and head that pass two needs.

    scales, [4, B, H, M], are -L, -Δ, b and -Δ·b, in the type of L; bounds, [B, H, 2], float32, are c and the largest l
    for the fast path, which is for 16 bits alone, so that b and the bounds mean nothing in float32. size is B·H·M.
    """
    latents = tl.arange(0, LATENTS)
    exists = latents < num_latents
    row = tl.program_id(0).to(tl.int64)
    place = row * num_latents + latents
    exact_logsumexp = tl.load(logsumexps + place, mask=exists, other=0.0)
    logsumexp = exact_logsumexp.to(tl.float32)
    largest = tl.max(tl.where(exists, logsumexp, float("-inf")), 0)
    smallest = tl.min(tl.where(exists, logsumexp, float("inf")), 0)
    z = load_latents(encoded, row, 0, num_latents, 0.0, LATENTS, DEPTH, DEPTH)
    dz = load_latents(grad_encoded, row, 0, num_latents, 0.0, LATENTS, DEPTH, DEPTH)
    spread: tl.constexpr = 58.0 if TYPE == tl.bfloat16 else 8.0
    stretch = tl.exp2(tl.minimum(largest - logsumexp, spread))
    # Δ is computed from dZ rounded as in the products: that rounding's error in V dZᵀ then cancels over the points.
    drop = -tl.sum(z * dz.to(TYPE).to(tl.float32), 1)
    stretched = -tl.sum(z * (dz * stretch[:, None]).to(slope_type(TYPE, True)).to(tl.float32), 1)
    tl.store(scales + place, -exact_logsumexp, mask=exists)
    tl.store(scales + size + place, drop, mask=exists)
    tl.store(scales + 2 * size + place, stretch, mask=exists)
    tl.store(scales + 3 * size + place, stretched, mask=exists)
    tl.store(bounds + 2 * row, largest)
    # Below it, P vanishes only where E is smaller than 2⁻⁵⁸.
    tl.store(bounds + 2 * row + 1, tl.where(largest - smallest < spread, smallest + 58.0, float("-inf")))


@triton.jit
def point_gradient_kernel(
    queries, keys, values, decoded, grad_decoded, point_logsumexps, encoded, grad_encoded, scales, bounds, finished,
    mask, offsets, grad_queries, grad_keys, grad_values,
    num_meshes, num_points, num_latents, total_points, slice_length, search_steps, latent,
    HEADS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, NARROW: tl.constexpr, LATENTS: tl.constexpr,
    TILES: tl.constexpr, POINTS: tl.constexpr, PRECISION: tl.constexpr, JOINED: tl.constexpr, MASKED: tl.constexpr,
    UNEVEN: tl.constexpr, ADD: tl.constexpr, FAST: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """Pass two. One slice of points, one head, TILES tiles of latents: dK, dV and a share of dQ, [slices, H, M, D].

    With ADD, dK and dV are added to what earlier latents left. The fast path notes in finished, [slices, H], which
    slices were within its range. The general path does the rest, in a launch of its own, as it takes more registers.
    """
    head = tl.program_id(0) % HEADS
    slot = tl.program_id(0) // HEADS
    if not FAST and finished is not None:  # noqa: SIM102 (what the compiler knows, and what the device knows)
        if tl.load(finished + tl.program_id(0)) != 0:
            return
    mesh, first, count = slice_of_mesh(slot, offsets, num_meshes, num_points, slice_length, search_steps, JOINED)
    row = mesh.to(tl.int64) * HEADS + head
    size = tl.cast(num_meshes, tl.int64) * HEADS * num_latents
    latent_terms = (scales + row * num_latents, size, tl.load(bounds + 2 * row), latent, num_latents)
    logsumexps = point_logsumexps + head.to(tl.int64) * total_points
    points = (keys, values, decoded, grad_decoded, logsumexps, mask)
    query_row = row_of_queries(mesh, head, HEADS, OWN)
    operands = ()
    dq = ()
    for tile in tl.static_range(TILES):
        operands += (_operands(queries, encoded, grad_encoded, latent_terms, query_row, row, latent + tile * LATENTS,
                               keys.dtype.element_ty, LATENTS, DEPTH, WIDTH, NARROW, FAST),)  # fmt: skip
        dq += (tl.zeros((LATENTS, NARROW), tl.float32),)
    # Whole tiles need no mask; with a mask of points every tile does. The fast path needs none at all.
    whole = 0 if MASKED else tl.maximum(count, 0) // POINTS * POINTS
    if FAST:
        within = _largest_logsumexp(logsumexps, first, count) <= tl.load(bounds + 2 * row + 1)
        tl.store(finished + tl.program_id(0), within.to(tl.int8))
        count = tl.where(within, count, 0)
        whole = count
    for start in range(0, whole, POINTS):
        dq = _advance(dq, operands, latent_terms, points, grad_keys, grad_values, first, start, count, head,
                      HEADS, DEPTH, WIDTH, NARROW, POINTS, PRECISION, MASKED, UNEVEN, ADD, False, FAST)  # fmt: skip
    if not FAST:
        for start in range(whole, count, POINTS):
            dq = _advance(dq, operands, latent_terms, points, grad_keys, grad_values, first, start, count, head,
                          HEADS, DEPTH, WIDTH, NARROW, POINTS, PRECISION, MASKED, UNEVEN, ADD, True, False)  # fmt: skip
    for tile in tl.static_range(TILES):
        store_latents(grad_queries, dq[tile], slot.to(tl.int64) * HEADS + head, latent + tile * LATENTS, num_latents,
                      LATENTS, DEPTH, NARROW)  # fmt: skip


@triton.jit
def _largest_logsumexp(logsumexps, first, count):
    """The largest l of a slice."""
    largest = tl.full((1024,), float("-inf"), tl.float32)
    for start in range(0, count, 1024):
        points = start + tl.arange(0, 1024)
        largest = tl.maximum(largest, tl.load(logsumexps + first + points, mask=points < count, other=float("-inf")))
    return tl.max(largest, 0)


@triton.jit
def _first_part(numbers):
    """The first 8 bits of numbers in float32, which bfloat16 holds as they are."""
    return (numbers.to(tl.uint32, bitcast=True) & 0xFFFF0000).to(tl.float32, bitcast=True)


@triton.jit
def _part(numbers, number: tl.constexpr):
    """One of three such parts, which make up the numbers."""
    for _ in tl.static_range(number):
        numbers -= _first_part(numbers)
    return _first_part(numbers)


@triton.jit
def _with_addends(tile, delta, factor, DEPTH: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of points whose spare channels hold δ and a, in parts, for the product with `_with_drops`.

    That product then adds -δ - a bΔ in float32; as the start of the sums it would take an instruction for every score.
    """
    tl.static_assert(DEPTH + 8 <= WIDTH)
    channels = tl.arange(0, WIDTH)[None, :]
    for number in tl.static_range(3):
        tile = tl.where(channels == DEPTH + number, _part(delta, number)[:, None], tile)
    for number in tl.static_range(5):
        tile = tl.where(channels == DEPTH + 3 + number, _part(factor, number // 3)[:, None], tile)
    return tile


@triton.jit
def _with_drops(tile, drop, DEPTH: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of latents that hold -1 for each part of δ, and parts of -bΔ: three for one of a, two for the other."""
    channels = tl.arange(0, WIDTH)[None, :]
    for number in tl.static_range(3):
        tile = tl.where(channels == DEPTH + number, -1.0, tile)
    for number in tl.static_range(5):
        tile = tl.where(channels == DEPTH + 3 + number, _part(drop, number % 3)[:, None], tile)
    return tile


@triton.jit
def _operands(
    queries, encoded, grad_encoded, latent_terms, query_row, row, latent,
    TYPE: tl.constexpr, LATENTS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, NARROW: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """Q, Z and dZ of a tile of latents, and Q and dZ as narrow as results are; for the fast path b dZ for dZ.

    Where a head leaves as many channels spare as it has, dZ of the fast path comes twice, and Z holds -bΔ in them.
    """
    SPARE: tl.constexpr = WIDTH >= 2 * DEPTH
    COPIES: tl.constexpr = 2 if FAST and SPARE else 1
    scales, size, _, _, num_latents = latent_terms
    q = load_latents(queries, query_row, latent, num_latents, 0.0, LATENTS, DEPTH, WIDTH)
    z = load_latents(encoded, row, latent, num_latents, 0.0, LATENTS, DEPTH, WIDTH)
    dz = load_latents(grad_encoded, row, latent, num_latents, 0.0, LATENTS, DEPTH, WIDTH, COPIES)
    narrow_q = load_latents(queries, query_row, latent, num_latents, 0.0, LATENTS, DEPTH, NARROW)
    narrow_dz = load_latents(grad_encoded, row, latent, num_latents, 0.0, LATENTS, DEPTH, NARROW)
    if FAST:
        latents = latent + tl.arange(0, LATENTS)
        stretch = tl.load(scales + 2 * size + latents, mask=latents < num_latents, other=0.0)[:, None]
        dz *= stretch
        narrow_dz *= stretch
        if SPARE:
            drop = tl.load(scales + 3 * size + latents, mask=latents < num_latents, other=0.0)
            z = _with_drops(z, drop, DEPTH, WIDTH)
    slopes: tl.constexpr = slope_type(TYPE, FAST)
    return q.to(TYPE), z.to(slopes), dz.to(slopes), narrow_q.to(TYPE), narrow_dz.to(TYPE)


@triton.jit
def _advance(
    dq, operands, latent_terms, points, grad_keys, grad_values, first, start, count, head,
    HEADS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, NARROW: tl.constexpr, POINTS: tl.constexpr,
    PRECISION: tl.constexpr, MASKED: tl.constexpr, UNEVEN: tl.constexpr, ADD: tl.constexpr, EDGE: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """One tile of points: stores dK and dV, returns dQ with what the tile adds.

    With EDGE or FAST, points may be missing.
    """
    SPARE: tl.constexpr = WIDTH >= 2 * DEPTH
    COPIES: tl.constexpr = 2 if FAST and SPARE else 1
    keys, values, decoded, grad_decoded, logsumexps, mask = points
    SLOPES: tl.constexpr = slope_type(keys.dtype.element_ty, FAST)
    k = load_points(keys, first, start, count, head, 0.0, HEADS, DEPTH, WIDTH, POINTS)
    v = load_points(values, first, start, count, head, 0.0, HEADS, DEPTH, WIDTH, POINTS, COPIES)
    y = load_points(decoded, first, start, count, head, 0.0, HEADS, DEPTH, WIDTH, POINTS)
    dy = load_points(grad_decoded, first, start, count, head, 0.0, HEADS, DEPTH, WIDTH, POINTS)
    place = start + tl.arange(0, POINTS)
    exists = place < count
    logsumexp = tl.load(logsumexps + first + place, mask=exists, other=0.0)
    if MASKED:
        exists = tl.load(mask + first + place, mask=exists, other=0) != 0
    delta = tl.sum(dy.to(tl.float32) * y.to(tl.float32), 1)
    # Right-hand factors and sums need no more columns than a head has channels.
    narrow_k = load_points(keys, first, start, count, head, 0.0, HEADS, DEPTH, NARROW, POINTS)
    dk = tl.zeros((POINTS, NARROW), tl.float32)
    dv = tl.zeros((POINTS, NARROW), tl.float32)
    if FAST:
        # Where there is no point, c could make this infinite, and 0 times it would be no number.
        factor = tl.where(exists, tl.exp2(logsumexp - latent_terms[2]), 0.0)
        scaled = v.to(tl.float32) * factor[:, None]
        # Rounded to bfloat16 once, a V would have an error as large as its deviations where V has a large mean.
        v, rest = _first_part(scaled), scaled - _first_part(scaled)
        dy = dy.to(tl.float32)
        if SPARE:
            v = tl.where(tl.arange(0, WIDTH)[None, :] < DEPTH, v, rest)
            dy = _with_addends(dy, delta, factor, DEPTH, WIDTH)
        v, rest, dy = v.to(SLOPES), rest.to(SLOPES), dy.to(SLOPES)
    advanced = ()
    for tile in tl.static_range(len(dq)):
        if FAST:
            ds, dv = _differentiate_fast(k, v, rest, dy, logsumexp, delta, factor, dv, operands[tile], latent_terms,
                                         tile, PRECISION, SPARE)  # fmt: skip
        else:
            ds, dv = _differentiate(k, v, dy, logsumexp, delta, exists, dv, operands[tile], latent_terms, tile,
                                    PRECISION, UNEVEN, EDGE)  # fmt: skip
        dk = tl.dot(ds, operands[tile][3], dk, input_precision=PRECISION)
        advanced += (tl.dot(tl.trans(ds), narrow_k, dq[tile], input_precision=PRECISION),)
    if FAST:
        dv *= factor[:, None]
    if ADD:
        dk += load_points(grad_keys, first, start, count, head, 0.0, HEADS, DEPTH, NARROW, POINTS)
        dv += load_points(grad_values, first, start, count, head, 0.0, HEADS, DEPTH, NARROW, POINTS)
    store_points(grad_keys, dk, first, start, count, head, HEADS, DEPTH, NARROW, POINTS)
    store_points(grad_values, dv, first, start, count, head, HEADS, DEPTH, NARROW, POINTS)
    return advanced


@triton.jit
def _differentiate_fast(
    k, v, rest, dy, logsumexp, delta, factor, dv, operands, latent_terms, tile,
    PRECISION: tl.constexpr, SPARE: tl.constexpr,
):  # fmt: skip
    """The same as `_differentiate` by one exponential, with a V for V, in two parts; dV lacks the factor a.

    As one sum takes both products, the second needs no registers of its own.
    """
    LATENTS: tl.constexpr = operands[0].shape[0]
    q, z, dz, _, narrow_dz = operands
    scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
    weights = exp_of_difference(scores, -logsumexp[:, None], False)
    dv = tl.dot(weights.to(k.dtype), narrow_dz, dv, input_precision=PRECISION)
    if SPARE:
        slope = tl.dot(dy, tl.trans(z), input_precision=PRECISION)
    else:
        # Read again for every tile: kept, it would take a quarter as many registers as the weights.
        drop = tl.load(latent_terms[0] + 3 * latent_terms[1] + latent_terms[3] + tile * LATENTS + tl.arange(0, LATENTS))
        start = tl.fma(tl.broadcast_to(drop[None, :], scores.shape), tl.broadcast_to(factor[:, None], scores.shape),
                       tl.broadcast_to(-delta[:, None], scores.shape))  # fmt: skip
        slope = tl.dot(dy, tl.trans(z), start, input_precision=PRECISION)
        slope = tl.dot(rest, tl.trans(dz), slope, input_precision=PRECISION)
    slope = tl.dot(v, tl.trans(dz), slope, input_precision=PRECISION)
    return (weights * slope).to(k.dtype), dv


@triton.jit
def _differentiate(
    k, v, dy, logsumexp, delta, exists, dv, operands, latent_terms, tile,
    PRECISION: tl.constexpr, UNEVEN: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Gradients of the scores, [POINTS, LATENTS], and dV with what a tile of latents adds, [POINTS, WIDTH]."""
    FLOAT32: tl.constexpr = k.dtype == tl.float32
    LATENTS: tl.constexpr = operands[0].shape[0]
    q, z, dz, _, narrow_dz = operands
    scales, size, _, latent, num_latents = latent_terms
    # Read again for every tile: kept, they would take half as many registers as the weights.
    latents = latent + tile * LATENTS + tl.arange(0, LATENTS)
    # Where there is no latent, no point weighs anything in its encoding.
    shift = tl.load(scales + latents, mask=latents < num_latents, other=-1e38)
    scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
    among_points = scores
    if EDGE:
        # Where there is no point, the score is 0, but L may lie far below.
        among_points = tl.where(exists[:, None], scores, float("-inf"))
    encoding = exp_of_difference(among_points, shift[None, :], FLOAT32)
    dv = tl.dot(encoding.to(k.dtype), narrow_dz, dv, input_precision=PRECISION)
    decoding = exp_of_difference(scores, -logsumexp[:, None], FLOAT32)
    if UNEVEN:
        decoding = tl.where((latents < num_latents)[None, :], decoding, 0.0)
    drop = tl.load(scales + size + latents, mask=latents < num_latents, other=0.0).to(tl.float32)
    more = tl.dot(v, tl.trans(dz), tl.broadcast_to(drop[None, :], scores.shape), input_precision=PRECISION)
    slope = tl.dot(dy, tl.trans(z), tl.broadcast_to(-delta[:, None], scores.shape), input_precision=PRECISION)
    return (encoding * more + decoding * slope).to(k.dtype), dv
