"""The token mixing of FLARE++ (arXiv:2608.11519): latent queries that depend on the mesh, by a third attention call.

B meshes, N points, C channels, H heads, D = C / H channels a head, M latents.
"""

from __future__ import annotations

from typing import Final, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from flare_model.layers.backend import ChosenMixer, compute_dtype, mix_by_kernels
from flare_model.layers.layout import Layout
from flare_model.layers.pointwise import add_linear
from flare_model.sizes import Implementation

_EPSILON: Final = 1e-6
"""Added to the mean square by RMSNorm."""
_GATE: Final = 0.25
"""Initial value of each head's gate γ; its sigmoid is 0.56."""
_DEVIATION: Final = 0.02

NormName = Literal["layer", "rms"]


def make_norm(name: NormName, width: int, *, learned: bool = True) -> nn.Module:
    """LayerNorm or RMSNorm over so many numbers, with a learned scale or without."""
    if name == "rms":
        return nn.RMSNorm(width, eps=_EPSILON, elementwise_affine=learned)
    return nn.LayerNorm(width, elementwise_affine=learned)


class FlarePlusPlusMixer(ChosenMixer):
    """Learned seeds attend to the points and give queries that encode the points into latents; then these are decoded.

    N₀ is a norm without a learned scale, N one with it, both over the channels of a head; Qᶠ are learned queries, γ is
    a learned gate of each head, and x are the points:

        S = N₀(W_s x), Qᵈ = attention(N(seeds), S, S), Q = N₀(Qᶠ) + σ(γ) Qᵈ, K = N(W_k x), V = W_v x
        Z = attention(Q, K, V), Y = attention(K, Q, Z), result W_o Y

    Scores are scaled by 1/√D. The queries differ from mesh to mesh, and their gradient flows into the first call.

    Args:
        channels: C.
        num_heads: H; it divides C.
        num_latents: M, latent tokens a head.
        norm: The kind of norm.
        implementation: As for [mix_meshes][flare_model.layers.mixer.mix_meshes].
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        num_latents: int,
        norm: NormName = "layer",
        implementation: Implementation = "auto",
    ) -> None:
        super().__init__(implementation)
        depth = channels // num_heads
        self.num_heads = num_heads
        self.latent_seeds = nn.Parameter(torch.empty(num_heads, num_latents, depth))
        self.latent_queries = nn.Parameter(torch.empty(num_heads, num_latents, depth))
        self.gates = nn.Parameter(torch.full((num_heads,), _GATE))
        self.seen = nn.Linear(channels, channels)
        self.keys = nn.Linear(channels, channels)
        self.values = nn.Linear(channels, channels)
        self.plain_norm = make_norm(norm, depth, learned=False)
        self.seed_norm = make_norm(norm, depth)
        self.key_norm = make_norm(norm, depth)
        self.leave = nn.Linear(channels, channels)
        for latents in (self.latent_seeds, self.latent_queries):
            nn.init.normal_(latents, std=_DEVIATION)
        self.start_near_identity()

    def start_near_identity(self) -> None:
        """Initialise the projections to W_s, keys and values as the identity plus a little noise."""
        for layer in (self.seen, self.keys, self.values):
            nn.init.trunc_normal_(layer.weight, std=_DEVIATION)
            nn.init.zeros_(layer.bias)
            with torch.no_grad():
                layer.weight += torch.eye(len(layer.bias), device=layer.weight.device, dtype=layer.weight.dtype)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """[B, N, C] or [ΣN, C] to the same."""
        out: Tensor = self.leave(self.mix(*self._projected(x), layout=layout))
        return out

    def add_after_norm(self, norm: nn.Module, x: Tensor, layout: Layout) -> Tensor:
        """Returns x + the mixing of norm(x)."""
        return self.add_output(x, self.mix(*self.project(norm, x), layout=layout))

    def add_output(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Returns x + the output of what `mix` returned; works on each point by itself."""
        return add_linear(x, self.leave, mixed, self.implementation)

    def project(self, norm: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        """S, keys and values of norm(x), each laid out as x; works on each point by itself."""
        return self._projected(norm(x))

    def _projected(self, x: Tensor) -> tuple[Tensor, ...]:
        seen, keys, values = (
            layer(x).unflatten(-1, (self.num_heads, -1)) for layer in (self.seen, self.keys, self.values)
        )
        # Under autocast norms return float32, and twice the memory is not needed until they are mixed.
        seen, keys = (t.to(values.dtype) for t in (self.plain_norm(seen), self.key_norm(keys)))
        return seen.flatten(-2), keys.flatten(-2), values.flatten(-2)

    def mix(self, *projected: Tensor, layout: Layout) -> Tensor:
        """From what `project` returns to mixed values, laid out alike; the only step between points."""
        device, dtype = projected[-1].device, compute_dtype(projected[-1])
        num_latents, depth = self.latent_queries.shape[1:]
        heads = [t.to(dtype).reshape(*t.shape[:-1], self.num_heads, depth) for t in projected]
        kernels: bool = mix_by_kernels(self.implementation, device, dtype, depth, num_latents)
        if kernels and not layout.has_no_meshes(heads[0]):
            return layout.apply_joined(self._mix_by_kernels, *heads).flatten(-2)
        return layout.attend(self._mix, *heads).flatten(-2)

    def _mix(self, seen: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None) -> Tensor:
        """[B, N, H, D] each, and so is the result."""
        attend = _attend_explicitly if self.implementation == "reference" else F.scaled_dot_product_attention
        exists = None if mask is None else mask[:, None, None, :]
        seen, keys, values = (t.transpose(1, 2) for t in (seen, keys, values))
        seeds = self.seed_norm(self.latent_seeds).to(seen.dtype).expand(seen.shape[0], -1, -1, -1)
        moved = attend(seeds, seen, seen, attn_mask=exists)
        queries = self._queries(moved).to(keys.dtype)
        encoded = attend(queries, keys, values, attn_mask=exists)
        mixed: Tensor = attend(keys, queries, encoded)
        return mixed.transpose(1, 2)

    def _mix_by_kernels(
        self, seen: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None, offsets: Tensor | None
    ) -> Tensor:
        """The same by kernels: one encodes for the queries, those of FLARE then take queries of each mesh.

        [B, N, H, D] each, or [ΣN, H, D] with offsets, and so is the result. Queries and their gradients stay in float32
        between the kernels.
        """
        from flare_model.kernels import encoding, mixing

        scale = keys.shape[-1] ** -0.5
        seeds = self.seed_norm(self.latent_seeds).float() * scale
        queries = self._queries(encoding.encode(seeds, seen, mask, offsets)) * scale
        return mixing.mix(queries, keys, values, mask, offsets)

    def _queries(self, moved: Tensor) -> Tensor:
        """Learned queries plus gated outputs of the seeds' attention, [B, H, M, D]; added in float32 at least."""
        with torch.autocast(moved.device.type, enabled=False):
            wide = torch.promote_types(moved.dtype, torch.float32)
            fixed = self.plain_norm(self.latent_queries.to(wide))
            queries: Tensor = fixed + self.gates.to(wide).sigmoid()[:, None, None] * moved.to(wide)
            return queries


def _attend_explicitly(queries: Tensor, keys: Tensor, values: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Attention by a matrix of softmax that is written out; arguments as for `scaled_dot_product_attention`."""
    scores = queries @ keys.mT * keys.shape[-1] ** -0.5
    among = scores if attn_mask is None else scores.masked_fill(~attn_mask, float("-inf"))
    attended: Tensor = among.softmax(-1) @ values
    return attended
