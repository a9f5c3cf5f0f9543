"""A linear layer and the residual connection around it in one kernel: y = x + W m + b, and its gradients in another.

N points, C channels, as many in as out. x and y are of one type, float32 mostly; m and products are of TYPE, 16 bits.
W and b are float32, and so are sums.
"""

import triton
import triton.language as tl

from flare_model.kernels.network import rows


@triton.jit
def residual_linear_kernel(
    x, inputs, weight, bias, out, count, C: tl.constexpr, POINTS: tl.constexpr, TYPE: tl.constexpr
):  # fmt: skip
    """[N, C] and [N, C] to [N, C]."""
    channels = tl.arange(0, C)
    w = tl.load(weight + channels[:, None] * C + channels[None, :]).to(TYPE)
    b = tl.load(bias + channels)[None, :]
    for start in range(tl.program_id(0) * POINTS, count, tl.num_programs(0) * POINTS):
        first, place, exists = rows(start, count, C, POINTS)
        m = tl.load(inputs + first + place, mask=exists, other=0.0)
        total = tl.load(x + first + place, mask=exists, other=0.0).to(tl.float32) + b
        total = tl.dot(m, tl.trans(w), total)
        tl.store(out + first + place, total.to(out.dtype.element_ty), mask=exists)


@triton.jit
def residual_linear_gradient_kernel(
    gradient, inputs, weight, grad_inputs, grad_weights, grad_biases, count,
    C: tl.constexpr, POINTS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Gradient of m, [N, C], and each program's share of those of W and b, with the programs in front.

    The gradient of x is that of y. It is rounded for the products only: b gets the sum of it as it is.
    """
    channels = tl.arange(0, C)
    square = channels[:, None] * C + channels[None, :]
    w = tl.load(weight + square).to(TYPE)
    dw = tl.zeros((C, C), tl.float32)
    db = tl.zeros((C,), tl.float32)
    for start in range(tl.program_id(0) * POINTS, count, tl.num_programs(0) * POINTS):
        first, place, exists = rows(start, count, C, POINTS)
        # Where there is no point the gradient is 0, and so is what the point adds to dW and db.
        g = tl.load(gradient + first + place, mask=exists, other=0.0).to(tl.float32)
        m = tl.load(inputs + first + place, mask=exists, other=0.0)
        db += tl.sum(g, 0)
        rounded = g.to(TYPE)
        dw = tl.dot(tl.trans(rounded), m, dw)
        tl.store(grad_inputs + first + place, tl.dot(rounded, w).to(TYPE), mask=exists)
    program = tl.program_id(0)
    tl.store(grad_weights + program * C * C + square, dw)
    tl.store(grad_biases + program * C + channels, db)
