"""Which points a program works on: a slice of one mesh, found without a table and without asking the host.

Meshes are cut into slices of S points. With meshes joined along their points, slice number i of mesh b, which starts at
point o_b, gets number ⌊o_b / S⌋ + b + i. Those numbers never meet: ⌊o_{b+1} / S⌋ - ⌊o_b / S⌋ + 1 is at least the number
of slices of mesh b. So ⌊ΣN / S⌋ + B numbers are enough, which the host knows from shapes alone; a few belong to no
points, and their programs end at once.
"""

import triton
import triton.language as tl


@triton.jit
def _bounds(mesh, offsets, num_points):
    """First point of a joined mesh, and the end, clamped so that wrong offsets can't address other memory."""
    start = tl.load(offsets + mesh).to(tl.int64)
    end = tl.load(offsets + mesh + 1).to(tl.int64)
    return tl.minimum(tl.maximum(start, 0), num_points), tl.minimum(tl.maximum(end, 0), num_points)


@triton.jit
def _slices_per_mesh(num_points, slice_length):
    """Slices of a mesh of a batch; rounding up is done in 64 bits, since it could overflow 32."""
    return tl.cdiv(tl.cast(num_points, tl.int64), slice_length).to(tl.int32)


@triton.jit
def slice_of_mesh(slot, offsets, num_meshes, num_points, slice_length, search_steps, JOINED: tl.constexpr):
    """The mesh of a slice, and its points.

    Args:
        slot: Number of the slice.
        offsets: First point of each mesh and the end of the last, [B + 1]; for joined meshes.
        num_meshes: B.
        num_points: ΣN for joined meshes, N for a batch of meshes of N points each.
        slice_length: S.
        search_steps: Halvings that find one mesh among B.
        JOINED: Whether meshes are joined.

    Returns:
        Mesh, first point among the points of all meshes, number of points: 0 for a slice of no points.
    """
    if JOINED:
        mesh = slot * 0
        beyond = mesh + num_meshes
        for _ in range(search_steps):
            middle = (mesh + beyond) // 2
            begins = (tl.load(offsets + middle).to(tl.int64) // slice_length + middle) <= slot
            mesh = tl.where(begins, middle, mesh)
            beyond = tl.where(begins, beyond, middle)
        start, end = _bounds(mesh, offsets, num_points)
        number = slot - (start // slice_length + mesh)
        first = tl.maximum(start + number * slice_length, 0)
        return mesh, first, tl.maximum(tl.minimum(end - first, slice_length), 0).to(tl.int32)
    else:
        per_mesh = _slices_per_mesh(num_points, slice_length)
        mesh = slot // per_mesh
        within = (slot % per_mesh).to(tl.int64) * slice_length
        return mesh, mesh.to(tl.int64) * num_points + within, tl.minimum(num_points - within, slice_length).to(tl.int32)


@triton.jit
def row_of_queries(mesh, head, HEADS: tl.constexpr, OWN: tl.constexpr):
    """Row of queries that lie as [H, M, D], or, where every mesh has its own, as [B, H, M, D]."""
    if OWN:
        return mesh.to(tl.int64) * HEADS + head
    else:
        return head


@triton.jit
def slices_of_mesh(mesh, offsets, num_points, slice_length, JOINED: tl.constexpr):
    """First slice of a mesh, and the one after its last; slices of no points may be among them."""
    if JOINED:
        start, end = _bounds(mesh, offsets, num_points)
        first = start // slice_length + mesh
        return first.to(tl.int32), (end // slice_length + mesh + 1).to(tl.int32)
    else:
        per_mesh = _slices_per_mesh(num_points, slice_length)
        return mesh * per_mesh, (mesh + 1) * per_mesh
