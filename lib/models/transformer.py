"""What the Transformers among the families share; the bridge calls their parts by the same names."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb

from lib.models.families import Cache, Neurons, Patchable, Rows


class Transformer(Patchable):
    """A family whose mixers are attention heads. Input: keys and values. Mixer's output: the heads' outputs z.

    Keys and values are those before the rotation. With grouped queries there are fewer of them than queries: `n_kv`
    heads of keys and values, each for n_heads / n_kv heads of queries.
    """

    rotary: ClassVar[bool] = True
    """Whether queries and keys are rotated by their positions; otherwise the embeddings alone know of these."""

    def __init__(self, model: TransformerBridge) -> None:
        super().__init__(model)
        self.blocks, self.norm = model.blocks, model.ln_final

    def neurons(self, layer: int) -> Neurons:
        hook = f"blocks.{layer}.mlp.out.hook_in"
        return Neurons((hook,), lambda cache: cache[hook])

    def hooks(self, layer: int) -> list[str]:
        parts = ("q", "k", "v", "z", *(("cos", "sin") if self.rotary else ()))
        return [f"blocks.{layer}.attn.hook_{part}" for part in parts]

    def inputs(self, cache: Cache, layer: int) -> Float[Tensor, "samples tokens 2 n_kv d_head"]:
        return torch.stack([cache[f"blocks.{layer}.attn.hook_{part}"] for part in ("k", "v")], dim=2)

    def qkv(self, layer: int, resid: Float[Tensor, "... d_model"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [..., n_heads, d_head], keys and values [..., n_kv, d_head] of a residual stream before a block."""
        attn, x = self.blocks[layer].attn, self.blocks[layer].ln1(resid)
        return tuple(part(x).unflatten(-1, (-1, self.model.cfg.d_head)) for part in (attn.q, attn.k, attn.v))

    def attend(self, cache: Cache, layer: int, q: Tensor, inputs: Tensor) -> Float[Tensor, "samples n_heads d_head"]:
        """z at the last position, from queries and `inputs` (keys, values) of all positions."""
        attn = self.blocks[layer].attn
        k, v = inputs.unbind(2)
        q, k = self.normed(layer, q, k)
        if self.rotary:
            turn = [cache[f"blocks.{layer}.attn.hook_{part}"] for part in ("cos", "sin")]
            q, k = apply_rotary_pos_emb(q, k, *turn, unsqueeze_dim=2)
        window = self.window(layer) or k.shape[1]
        k, v = (x[:, -window:].repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
        scores = torch.einsum("shd,sthd->sht", q[:, -1], k) * attn.scaling
        return torch.einsum("sht,sthd->shd", scores.softmax(-1), v)

    def normed(self, layer: int, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys as they are rotated."""
        return q, k

    def window(self, layer: int) -> int | None:
        """How many positions a token reads from, itself included; None: all up to it."""
        return None

    def attention_output(self, layer: int, z: Float[Tensor, "... n_heads d_head"]) -> Float[Tensor, "... d_model"]:
        """What the heads add to the residual stream."""
        return self.blocks[layer].attn.o(z.flatten(-2))

    def after(self, layer: int, resid: Float[Tensor, "... d_model"], attention: Tensor) -> Float[Tensor, "... d_model"]:
        """The residual stream after a block, from the one before it and what attention adds."""
        block, before_mlp = self.blocks[layer], resid + attention
        return before_mlp + block.mlp(block.ln2(before_mlp))

    def mixer_output(self, cache: Cache, layer: int, inputs: Tensor) -> Float[Tensor, "samples n_heads d_head"]:
        return self.attend(cache, layer, cache[f"blocks.{layer}.attn.hook_q"], inputs)

    def step(self, cache: Cache, layer: int, rows: Rows, mixer_output: Float[Tensor, "samples n_heads d_head"]) -> Rows:
        return self.after(layer, rows, self.attention_output(layer, mixer_output))
