"""PerceiverIO, LNO, GNOT, Transolver with convolution, FLARE++ and FLARE's ablations, and their formulas.

The formulas are written out here once more, with exponentials and sums alone, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flare_model.models.flare import Flare, FlareConfig
from flare_model.models.flare_plus_plus import FlarePlusPlus, FlarePlusPlusConfig
from flare_model.models.gnot import GNOT, GNOTConfig
from flare_model.models.grid_transolver import GridTransolver, GridTransolverConfig
from flare_model.models.lno import LNO, LNOConfig
from flare_model.models.perceiver import PerceiverConfig, PerceiverIO

TINY: dict[str, Any] = {"channels": 8, "num_heads": 2, "num_blocks": 2, "out_dim": 2}
GRID: dict[str, Any] = {"grid_rows": 3, "grid_columns": 4}
ABLATED: dict[str, Any] = {"separate_decoding": True, "scaled_scores": True, "pointwise": "mlp", "latent_layers": 1}

RAGGED: dict[str, Callable[[], nn.Module]] = {
    "perceiver": lambda: PerceiverIO(PerceiverConfig(**TINY, num_latents=5)),
    "lno": lambda: LNO(LNOConfig(**TINY, num_modes=5)),
    "gnot": lambda: GNOT(GNOTConfig(**TINY)),
    "gnot original": lambda: GNOT(GNOTConfig(**TINY, flow="original")),
    "flare++": lambda: FlarePlusPlus(FlarePlusPlusConfig(**TINY, num_latents=5)),
    "flare++ rms": lambda: FlarePlusPlus(FlarePlusPlusConfig(**TINY, num_latents=5, norm="rms")),
    "flare ablated": lambda: Flare(FlareConfig(**TINY, num_latents=5, **ABLATED)),
}
GRIDDED: dict[str, Callable[[], nn.Module]] = {
    "grid transolver": lambda: GridTransolver(
        GridTransolverConfig(**TINY, **GRID, num_slices=5, unified_positions=False)
    ),
    "grid transolver unified": lambda: GridTransolver(GridTransolverConfig(**TINY, **GRID, num_slices=5)),
    "gnot unified": lambda: GNOT(GNOTConfig(**TINY, **GRID, unified_positions=True)),
}
MODELS = RAGGED | GRIDDED


def in_double(name: str) -> Any:
    """A model in float64 whose attention is far from uniform: every weight gets a random number added."""
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.5 if parameter.dim() > 1 else 0.2))
    return model


def sample(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


# The formulas.


def softmax(x: Tensor, dim: int) -> Tensor:
    return x.exp() / x.exp().sum(dim, keepdim=True)


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def tanh_gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def linear(layer: Any, x: Tensor) -> Tensor:
    out = torch.einsum("...i,oi->...o", x, layer.weight)
    return out if layer.bias is None else out + layer.bias


def standardise(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / ((centred**2).mean(-1, keepdim=True) + 1e-5).sqrt()


def rms(x: Tensor) -> Tensor:
    return x / ((x**2).mean(-1, keepdim=True) + 1e-6).sqrt()


def norm(layer: Any, x: Tensor) -> Tensor:
    return rms(x) * layer.weight if isinstance(layer, nn.RMSNorm) else standardise(x) * layer.weight + layer.bias


def feed_forward(network: Any, x: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
    return linear(network.leave, act(linear(network.enter, x)))


def input_projection(network: Any, x: Tensor) -> Tensor:
    h = tanh_gelu(linear(network.enter, x))
    for layer in network.layers:
        h = h + tanh_gelu(linear(layer, h))
    return h + linear(network.leave, h)


def output_projection(network: Any, x: Tensor) -> Tensor:
    h = x + tanh_gelu(linear(network.enter, x))
    for layer in network.layers:
        h = h + tanh_gelu(linear(layer, h))
    return linear(network.leave, h)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float | None = None) -> Tensor:
    """[Q, C], [K, C] and [K, C] to [Q, C], head by head."""
    out = []
    for a, b, c in zip(*(t.chunk(heads, dim=-1) for t in (q, k, v)), strict=True):
        out.append(softmax(a @ b.T * (a.shape[1] ** -0.5 if scale is None else scale), 1) @ c)
    return torch.cat(out, dim=-1)


def latent_block(block: Any, z: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
    q, k, v = linear(block.mixer.enter, norm(block.mixer_norm, z)).chunk(3, dim=-1)
    z = z + linear(block.mixer.leave, attention(q, k, v, 2))
    return z + feed_forward(block.pointwise, norm(block.pointwise_norm, z), act)


def perceiver(m: Any, x: Tensor) -> Tensor:
    x = input_projection(m.enter, x)
    e, d, seen = m.encoder, m.decoder, norm(m.encoder.norm, x)
    z = linear(e.leave, attention(e.latents, linear(e.keys, seen), linear(e.values, seen), 2))
    for block in m.blocks:
        z = latent_block(block, z, tanh_gelu)
    z = norm(d.latent_norm, z)
    y = attention(linear(d.queries, norm(d.norm, x)), linear(d.keys, z), linear(d.values, z), 2)
    return output_projection(m.leave, norm(m.norm, linear(d.leave, y)))


def lno(m: Any, x: Tensor) -> Tensor:
    def mlp(network: Any, x: Tensor) -> Tensor:
        r = gelu(linear(network.enter, x))
        for layer in network.layers:
            r = r + gelu(linear(layer, r))
        return linear(network.leave, r)

    s, y = mlp(m.scores, mlp(m.trunk, x)), mlp(m.branch, x)
    z = softmax(s, 0).T @ y
    for block in m.blocks:
        z = latent_block(block, z, gelu)
    return mlp(m.leave, softmax(s, 1) @ z)


def gnot(m: Any, pos: Tensor) -> Tensor:
    def linear_attention(layer: Any, a: Tensor, b: Tensor) -> Tensor:
        out = []
        parts = (linear(layer.queries, a), linear(layer.keys, b), linear(layer.values, b))
        for a, b, v in zip(*(t.chunk(2, dim=-1) for t in parts), strict=True):
            q, k = softmax(a, 1), softmax(b, 1)
            common = q @ k.T  # every pair of points, which the model itself avoids
            out.append(common @ v / common.sum(1, keepdim=True) + q)
        return linear(layer.leave, torch.cat(out, dim=1))

    def experts(networks: Any, h: Tensor, g: Tensor) -> Tensor:
        return sum(g[:, e : e + 1] * feed_forward(n, h, gelu) for e, n in enumerate(networks.networks))

    def block(b: Any, x: Tensor, z: Tensor) -> Tensor:
        first, _, second, _, third = b.gate
        g = softmax(linear(third, gelu(linear(second, gelu(linear(first, pos))))), 1)
        h = x + linear_attention(b.cross, norm(b.trunk_norm, x), norm(b.source_norm, z))
        h = h + norm(b.first_norm, experts(b.first, h, g))
        own = norm(b.self_norm, h)
        h = h + linear_attention(b.self_attention, own, own)
        return h + norm(b.second_norm, experts(b.second, h, g))

    u = pos if m.grid is None else distances()
    x = feed_forward(m.enter, u, gelu)
    z = feed_forward(m.enter_source.network, u, gelu) + m.enter_source.placeholder
    for b in m.blocks:
        if m.config.flow == "original":
            x = block(b, x, z)
        else:
            z = block(b, x, z)
    return feed_forward(m.leave, x if m.config.flow == "original" else z, gelu)


def distances() -> Tensor:
    """Distances of the points of the grid to 8 × 8 reference points, [12, 64]."""
    points = [(i / 2, j / 3) for i in range(3) for j in range(4)]
    places = [(i / 7, j / 7) for i in range(8) for j in range(8)]
    return torch.tensor([[math.dist(p, r) for r in places] for p in points], dtype=torch.float64)


def convolution(layer: Any, x: Tensor) -> Tensor:
    """A 3 × 3 convolution on the grid, [12, C] to [12, C], neighbour by neighbour."""
    out = []
    for n in range(12):
        i, j = divmod(n, 4)
        near = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if 0 <= i + a < 3 and 0 <= j + b < 4]
        out.append(layer.bias + sum(layer.weight[:, :, a + 1, b + 1] @ x[4 * (i + a) + j + b] for a, b in near))
    return torch.stack(out)


def grid_transolver(m: Any, x: Tensor) -> Tensor:
    if m.config.unified_positions:
        f = feed_forward(m.enter.network, torch.cat([distances(), x[:, 2:]], 1), gelu)
    else:
        f = feed_forward(m.enter.network, x, gelu) + m.enter.placeholder
    for block in m.blocks:
        a, seen, out = block.mixer, norm(block.mixer_norm, f), []
        pairs = zip(convolution(a.assign, seen).chunk(2, 1), convolution(a.values, seen).chunk(2, 1), strict=True)
        for h, (mid, values) in enumerate(pairs):
            w = softmax(linear(a.slices, mid) / a.temperature[h].clamp(0.1, 5), 1)
            tokens = w.T @ values / (w.sum(0)[:, None] + 1e-5)
            out.append(w @ attention(*linear(a.slice_attention, tokens).chunk(3, 1), 1))
        f = f + linear(a.leave, torch.cat(out, 1))
        f = f + feed_forward(block.pointwise, norm(block.pointwise_norm, f), gelu)
    return linear(m.leave, norm(m.norm, f))


def flare_plus_plus(m: Any, x: Tensor) -> Tensor:
    plain = rms if m.config.norm == "rms" else standardise
    x = input_projection(m.enter, x)
    for block in m.blocks:
        a, seen, out = block.mixer, norm(block.mixer_norm, x), []
        parts = zip(*(linear(layer, seen).chunk(2, 1) for layer in (a.seen, a.keys, a.values)), strict=True)
        for h, (looked_at, key, v) in enumerate(parts):
            s, k = plain(looked_at), norm(a.key_norm, key)
            moved = attention(norm(a.seed_norm, a.latent_seeds[h]), s, s, 1)
            q = plain(a.latent_queries[h]) + moved / (1 + (-a.gates[h]).exp())
            out.append(attention(k, q, attention(q, k, v, 1), 1))
        x = x + linear(a.leave, torch.cat(out, 1))
        x = x + feed_forward(block.pointwise, norm(block.pointwise_norm, x), tanh_gelu)
    return output_projection(m.leave, norm(m.norm, x))


def ablated_flare(m: Any, x: Tensor) -> Tensor:
    def residual(network: Any, x: Tensor) -> Tensor:
        h = x + tanh_gelu(linear(network.enter, x))
        for layer in network.layers:
            h = h + tanh_gelu(linear(layer, h))
        return h + linear(network.leave, h)

    x = input_projection(m.enter, x)
    for block in m.blocks:
        a, seen = block.mixer, norm(block.mixer_norm, x)
        encoding, decoding = (q.transpose(0, 1).flatten(1) for q in (a.latent_queries, a.decoding_latent_queries))
        z = attention(encoding, residual(a.keys, seen), residual(a.values, seen), 2, scale=0.5)
        z = latent_block(a.among[0], z, tanh_gelu)
        x = x + linear(a.leave, attention(residual(a.decoding_keys, seen), decoding, z, 2, scale=0.5))
        x = x + feed_forward(block.pointwise, norm(block.pointwise_norm, x), tanh_gelu)
    return output_projection(m.leave, norm(m.norm, x))


FORMULAS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "perceiver": perceiver,
    "lno": lno,
    "gnot": gnot,
    "gnot original": gnot,
    "flare++": flare_plus_plus,
    "flare++ rms": flare_plus_plus,
    "flare ablated": ablated_flare,
    "grid transolver": grid_transolver,
    "grid transolver unified": grid_transolver,
    "gnot unified": gnot,
}
