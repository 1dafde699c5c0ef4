"""Language models of two families, whose loss never holds the logits of all tokens at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class LanguageModel(nn.Module):
    """Embeddings, layers that look back only, and the cross entropy of the next token.

    ``forward`` maps tokens (integers, ``(batch, length)``) to the mean cross entropies of chunks of consecutive
    predictions (float, one a chunk; the last chunk may be shorter), the targets being the tokens themselves, one place
    on. A chunk's logits exist while its cross entropy is computed and are made again in backward: all of them together
    would take more memory than the layers and hide what those take.

    Args:
        width: Features of a token.
        vocabulary: Number of tokens that there are.
        chunk: Predictions whose logits exist at once.
        head: Makes logits of features.
    """

    def __init__(self, *, width: int, vocabulary: int, chunk: int, head: nn.Module) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.chunk, self.head = chunk, head

    def hidden(self, tokens: Tensor) -> Tensor:
        """The features ``(batch, length, width)`` that the head turns into logits."""
        raise NotImplementedError

    def forward(self, tokens: Tensor) -> Tensor:
        features = self.hidden(tokens)[:, :-1].flatten(0, 1).split(self.chunk)
        targets = tokens[:, 1:].flatten().split(self.chunk)
        losses = [checkpoint(self._loss, *pair, use_reentrant=False) for pair in zip(features, targets, strict=True)]
        return torch.stack(losses)

    def _loss(self, features: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.head(features), targets)


class CausalDecoder(LanguageModel):
    """A language model like GPT: learned positions, layers with LayerNorm and GELU, biases.

    Layers are pre-norm, with one more norm behind the last of them; or post-norm, each ending with a norm of its own.
    """

    def __init__(
        self, *, depth: int, width: int, length: int, vocabulary: int, chunk: int = 512, norm_first: bool = True
    ) -> None:
        super().__init__(width=width, vocabulary=vocabulary, chunk=chunk, head=nn.Linear(width, vocabulary))
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(transformer_layer(width, norm_first=norm_first) for _ in range(depth))
        self.norm = nn.LayerNorm(width) if norm_first else nn.Identity()

    def hidden(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=x.device, dtype=x.dtype)
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        output: Tensor = self.norm(x)
        return output


class LlamaDecoder(LanguageModel):
    """A language model like Llama: rotary positions, pre-norm layers with RMSNorm and SwiGLU, no biases."""

    rotation: Tensor

    def __init__(self, *, depth: int, width: int, length: int, vocabulary: int, chunk: int = 512) -> None:
        super().__init__(width=width, vocabulary=vocabulary, chunk=chunk, head=nn.Linear(width, vocabulary, bias=False))
        self.register_buffer("rotation", rotary_table(length, width // head_count(width)), persistent=False)
        self.blocks = nn.ModuleList(LlamaLayer(width) for _ in range(depth))
        self.norm = nn.RMSNorm(width)

    def hidden(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x, rotation=self.rotation)
        output: Tensor = self.norm(x)
        return output


class LlamaLayer(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.RMSNorm(width), RotaryAttention(width)
        self.mlp_norm, self.mlp = nn.RMSNorm(width), SwiGLU(width)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotation)
        output: Tensor = x + self.mlp(self.mlp_norm(x))
        return output


class RotaryAttention(nn.Module):
    """Causal attention whose queries and keys are rotated by their positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = head_count(width)
        self.projections = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        # (batch, length, 3 * width) to three of (batch, heads, length, width / heads).
        query, key, value = self.projections(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(rotated(query, rotation), rotated(key, rotation), value, is_causal=True)
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output


class SwiGLU(nn.Module):
    """``W3 (silu(W1 x) * W2 x)``, as wide inside as 8/3 of the width, in multiples of 64."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 64 * -(-8 * width // (3 * 64))
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return output


def rotary_table(length: int, features: int) -> Tensor:
    """Cosines and sines ``(2, length, features / 2)`` of the angles ``position * 10000 ** (-2 i / features)``."""
    frequencies = 10000.0 ** -(torch.arange(0, features, 2) / features)
    angles = torch.outer(torch.arange(length), frequencies)
    return torch.stack([angles.cos(), angles.sin()])


def rotated(x: Tensor, table: Tensor) -> Tensor:
    """Turns each pair of features ``(i, i + features / 2)`` by the angle of its position."""
    cosine, sine = table.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)


def transformer_layer(width: int, *, norm_first: bool = True) -> nn.Module:
    """A layer of 64 features a head; no dropout, as language models are trained today.

    ``x + branch(norm(x))`` for attention and feed-forward, or ``norm(x + branch(x))`` where ``norm_first`` is False.
    """
    return nn.TransformerEncoderLayer(
        width, head_count(width), 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first
    )


def head_count(width: int) -> int:
    """Attention heads of 64 features; a single one of fewer.

    Raises:
        ValueError: ``width`` features are no whole number of heads.
    """
    if width > 64 and width % 64:
        raise ValueError(f"{width} features make no whole heads; give a multiple of 64, or less than 64")
    return max(1, width // 64)
