"""FLARE's token mixing as two attention calls: the readable reference, and the fallback for every device.

B meshes, N points, C channels, H heads, D = C / H channels a head, M latents.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812 (the name that everyone uses)
from torch import Tensor, nn

from flare_model.layers.backend import OPTION, ChosenMixer, compute_dtype, mix_by_cpu_kernels, mix_by_kernels
from flare_model.layers.divided_meshes import decode_divided, encode_divided
from flare_model.layers.layout import Layout
from flare_model.layers.pointwise import ResMLP, add_linear, apply_after_norm
from flare_model.sizes import IMPLEMENTATIONS, Implementation
from lpbf_data.errors import UsageError


def mix(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Encode N points into M latents, decode the latents onto the points (FLARE, equations 5 and 6).

    The latents attend to the points, then the points attend to the latents; both with scale 1.

    Args:
        queries: Latent queries, [H, M, D].
        keys: Keys of the points, [B, H, N, D].
        values: Values of the points, [B, H, N, D].
        mask: True where a point exists, [B, N]; for padded batches. Every mesh needs a point.

    Returns:
        [B, H, N, D]; rows of points that don't exist mean nothing.
    """
    latents = queries.unsqueeze(0).expand(keys.shape[0], -1, -1, -1)
    exists = None if mask is None else mask[:, None, None, :]
    encoded = F.scaled_dot_product_attention(latents, keys, values, attn_mask=exists, scale=1.0)
    return F.scaled_dot_product_attention(keys, latents, encoded, scale=1.0)


def mix_explicitly(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """`mix` by two softmax matrices that are formed in full; arguments as for `mix`."""
    scores = torch.einsum("hmd,bhnd->bhmn", queries, keys)
    among_points = scores if mask is None else scores.masked_fill(~mask[:, None, None, :], float("-inf"))
    encoded = among_points.softmax(dim=-1) @ values
    return scores.softmax(dim=-2).transpose(-1, -2) @ encoded


def mix_meshes(
    queries: Tensor, keys: Tensor, values: Tensor, layout: Layout, implementation: Implementation = "sdpa"
) -> Tensor:
    """`mix` for any layout of meshes: keys and values are [B, N, H, D] or [ΣN, H, D], and so is the result.

    Args:
        queries: Latent queries, [H, M, D].
        keys: Keys of the points.
        values: Values of the points.
        layout: How the points divide into meshes.
        implementation: triton for the GPU's kernels, sdpa for two attention calls, reference for matrices written out;
            auto takes the kernels of the GPU or the CPU where they can run, else the attention calls.

    Raises:
        UsageError: If the kernels are asked for by name where they can't run.
    """
    dtype = compute_dtype(keys)
    kernels: bool = mix_by_kernels(implementation, keys.device, dtype, queries.shape[2], queries.shape[1])
    if kernels and not layout.has_no_meshes(keys):
        from flare_model.kernels import mixing

        by_kernels = mixing.mix if layout.ranks is None else partial(mixing.mix_divided, layout.ranks)
        return layout.apply_joined(partial(by_kernels, queries.to(dtype)), keys.to(dtype), values.to(dtype))
    if layout.ranks is not None:
        keys, values = keys.to(dtype), values.to(dtype)
        return decode_divided(queries, keys, encode_divided(queries, keys, values, layout), layout)
    if layout.mask is None and mix_by_cpu_kernels(implementation, queries, keys, values):
        from flare_model.kernels.cpu import mixing as cpu_mixing

        return layout.apply_joined(partial(cpu_mixing.mix, queries), keys, values)
    one_mesh = mix_explicitly if implementation == "reference" else mix

    def one_batch(keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        return one_mesh(queries, keys.transpose(1, 2), values.transpose(1, 2), mask).transpose(1, 2)

    return layout.attend(one_batch, keys, values)


def mix_by(model: nn.Module, implementation: Implementation) -> None:
    """Choose the implementation of a model's mixing on this machine; weights and checkpoints stay the same.

    Args:
        model: FLARE, FLARE++, or another model with their mixers.
        implementation: As for `mix_meshes`, for the pointwise networks too.

    Raises:
        UsageError: If there is no such implementation, or the model has no mixer with several.
    """
    if implementation not in IMPLEMENTATIONS:
        raise UsageError(f"the mixer must be one of {', '.join(IMPLEMENTATIONS)}, not {implementation!r}")
    modules = list(model.modules())
    mixers = [module for module in modules if isinstance(module, ChosenMixer)]
    if not mixers:
        if implementation != "auto":
            raise UsageError(
                f"{OPTION} {implementation} is for FLARE and FLARE++; {type(model).__name__} mixes in one way alone"
            )
        return
    if implementation in ("triton", "reference") and not all(mixer.as_published for mixer in mixers):
        raise UsageError(
            f"{OPTION} {implementation} is for FLARE as published; with separate_decoding or latent_layers attention "
            f"calls mix: leave {OPTION} at auto"
        )
    for module in modules:
        if isinstance(module, ChosenMixer | ResMLP):
            module.implementation = implementation


class LatentMixing(nn.Module):
    """`mix_meshes` as a module without weights, so that forward hooks can read queries and keys (for spectra)."""

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, layout: Layout, implementation: Implementation
    ) -> Tensor:
        """Arguments and result of `mix_meshes`."""
        return mix_meshes(queries, keys, values, layout, implementation)


class FlareMixer(ChosenMixer):
    """Token mixing through latents (section 3.2): learned queries, keys and values from deep networks.

    Args:
        channels: C.
        num_heads: H; it divides C.
        num_latents: M, latent tokens a head.
        layers: Residual layers in the key and value networks.
        implementation: How to mix; see `mix_meshes`.
        scaled_scores: Multiply scores by 1/√D; the paper's are not.
        separate_decoding: Decode with latents and keys of their own, which the paper's don't have.
        latent_blocks: Blocks among the latents between encoding and decoding, each called with [B, M, C] and a
            [Layout][flare_model.layers.layout.Layout]; the paper has none.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        num_latents: int,
        layers: int,
        implementation: Implementation = "auto",
        *,
        scaled_scores: bool = False,
        separate_decoding: bool = False,
        latent_blocks: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__(implementation)
        self.num_heads = num_heads
        self.scale = (channels // num_heads) ** -0.5 if scaled_scores else 1.0
        self.latent_queries = nn.Parameter(torch.empty(num_heads, num_latents, channels // num_heads))
        self.keys = ResMLP(channels, channels, channels, layers, implementation=implementation)
        self.values = ResMLP(channels, channels, channels, layers, implementation=implementation)
        self.separate_decoding = separate_decoding
        if separate_decoding:
            self.decoding_latent_queries = nn.Parameter(torch.empty_like(self.latent_queries))
            self.decoding_keys = ResMLP(channels, channels, channels, layers, implementation=implementation)
            nn.init.normal_(self.decoding_latent_queries, std=0.1)
        self.among = nn.ModuleList(latent_blocks)
        self.mixing = LatentMixing()
        self.leave = nn.Linear(channels, channels)
        nn.init.normal_(self.latent_queries, std=0.1)

    @property
    def as_published(self) -> bool:  # type: ignore[override]
        """Whether it mixes as the paper does, by one pair of queries and keys and with nothing between."""
        return not (self.separate_decoding or len(self.among) > 0)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """[B, N, C] or [ΣN, C] to the same."""
        out: Tensor = self.leave(self.mix(*(network(x) for network in self._networks()), layout=layout))
        return out

    def add_after_norm(self, norm: nn.LayerNorm, x: Tensor, layout: Layout) -> Tensor:
        """Returns x + the mixing of norm(x)."""
        x, *projected = apply_after_norm(self._networks(), norm, x)
        return self.add_output(x, self.mix(*projected, layout=layout))

    def project(self, norm: nn.LayerNorm, x: Tensor) -> tuple[Tensor, ...]:
        """Keys and values of norm(x), and keys to decode with where they are separate, each laid out as x.

        Works on each point by itself.
        """
        return apply_after_norm(self._networks(), norm, x)[1:]

    def add_output(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Returns x + the output of what `mix` returned; works on each point by itself."""
        return add_linear(x, self.leave, mixed, self.implementation)

    def _networks(self) -> list[ResMLP]:
        return [self.keys, self.values, *([self.decoding_keys] if self.separate_decoding else [])]

    def mix(self, *projected: Tensor, layout: Layout) -> Tensor:
        """From what `project` returns to mixed values, laid out alike; the only step between points."""
        heads = (*projected[0].shape[:-1], self.num_heads, projected[0].shape[-1] // self.num_heads)
        keys, values, *decoding = (t.reshape(heads) for t in projected)
        queries = self.latent_queries.to(keys.dtype)
        if not self.as_published:
            if layout.ranks is not None:
                return self._mix_ablated_divided(keys, values, *decoding, layout=layout).flatten(-2)
            return layout.attend(self._mix_ablated, keys, values, *decoding).flatten(-2)
        if self.scale != 1.0:
            queries = queries * self.scale
        mixed: Tensor = self.mixing(queries, keys, values, layout, self.implementation)
        return mixed.flatten(-2)

    def _mix_ablated(
        self, keys: Tensor, values: Tensor, decoding_keys: Tensor | None = None, *, mask: Tensor | None
    ) -> Tensor:
        """Keys and values [B, N, H, D] to the same, with separate decoding or with blocks among the latents."""
        exists = None if mask is None else mask[:, None, None, :]
        keys, values = keys.transpose(1, 2), values.transpose(1, 2)
        queries = self.latent_queries.to(keys.dtype).expand(keys.shape[0], -1, -1, -1)
        encoded = F.scaled_dot_product_attention(queries, keys, values, attn_mask=exists, scale=self.scale)
        encoded = self._mix_latents(encoded, keys.dtype)
        if decoding_keys is not None:
            keys = decoding_keys.transpose(1, 2)
            queries = self.decoding_latent_queries.to(keys.dtype).expand_as(queries)
        return F.scaled_dot_product_attention(keys, queries, encoded, scale=self.scale).transpose(1, 2)

    def _mix_ablated_divided(
        self, keys: Tensor, values: Tensor, decoding_keys: Tensor | None = None, *, layout: Layout
    ) -> Tensor:
        """`_mix_ablated` where processes share points, of keys and values laid out as the layout says.

        Every process computes the blocks among the latents, for all latents.
        """
        dtype = compute_dtype(keys)
        keys, values = keys.to(dtype), values.to(dtype)
        encoded = encode_divided(self.latent_queries.to(dtype) * self.scale, keys, values, layout)
        encoded = self._mix_latents(encoded, dtype)
        if decoding_keys is None:
            return decode_divided(self.latent_queries * self.scale, keys, encoded, layout)
        return decode_divided(self.decoding_latent_queries * self.scale, decoding_keys.to(dtype), encoded, layout)

    def _mix_latents(self, encoded: Tensor, dtype: torch.dtype) -> Tensor:
        """Latents [B, H, M, D] through the blocks among them, if there are any."""
        if len(self.among) == 0:
            return encoded
        latents = encoded.transpose(1, 2).flatten(2)
        for block in self.among:
            latents = block(latents, Layout())
        return latents.view(encoded.transpose(1, 2).shape).transpose(1, 2).to(dtype)
