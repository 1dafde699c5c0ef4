"""Small transformers: PyTorch's own, and attention written by hand in other ways."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 8


def transformer(**options: object) -> nn.Transformer:
    torch.manual_seed(0)
    return nn.Transformer(WIDTH, 2, 2, 3, 16, batch_first=True, **options)


def sequences() -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, WIDTH, generator=source), torch.randn(2, 5, WIDTH, generator=source)


def encoder(**options: object) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor="norm_first" not in options)


class Attention(nn.Module):
    """Attention written by hand, under names that tell nothing."""

    def __init__(self, *, output: bool = True) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.d = nn.Linear(WIDTH, WIDTH) if output else nn.Identity()

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        logits = self.c(x) @ self.a(y).transpose(1, 2)
        weights = (logits if mask is None else logits.masked_fill(mask, -1e9)).softmax(-1)
        return self.d(weights @ self.b(y))


class Fused(nn.Module):
    """One matrix for queries, keys and values, and fused attention."""

    def __init__(self, name: str = "mixed", heads: int = 3) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, nn.Linear(WIDTH, heads * WIDTH))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (part[:, None] for part in self.get_submodule(self.name)(x)[..., : 3 * WIDTH].chunk(3, dim=-1))
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v)[:, 0])


class KeysAndValues(nn.Module):
    """Keys and values in one matrix, the queries in another."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        k, v = self.kv(y).chunk(2, dim=-1)
        return self.out((self.q(x) @ k.transpose(1, 2)).softmax(-1) @ v)


class Layer(nn.Module):
    """A pre-norm layer around an attention, with a gated feed-forward part."""

    def __init__(self, attention: nn.Module, *, cross: bool = False, causal: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.cross, self.causal = attention, cross, causal
        self.up, self.gate, self.down = nn.Linear(WIDTH, 16), nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        h = self.norm1(x)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1) if self.causal else None
        x = x + self.attention(h, memory if self.cross else h, mask)
        h = self.norm2(x)
        return x + self.down(nn.functional.silu(self.gate(h)) * self.up(h))


class Stack(nn.Module):
    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, memory)
        return x


class LanguageModel(nn.Module):
    """Embeddings and a causal stack of PyTorch's encoder layers: a decoder all the same."""

    def __init__(self, *, head_first: bool = False) -> None:
        super().__init__()
        if head_first:
            self.head = nn.Linear(WIDTH, 2000, bias=False)
        self.words, self.positions = nn.Embedding(2000, WIDTH, padding_idx=0), nn.Embedding(6, WIDTH)
        self.encoder = encoder()
        if not head_first:
            self.head = nn.Linear(WIDTH, 2000, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.positions(torch.arange(tokens.shape[1]))
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.head(self.encoder(x, mask=mask))


class RelativeAttention(nn.Module):
    """Self-attention whose logits have a learned bias by distance, as T5's."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.distances = nn.Embedding(11, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        places = torch.arange(x.shape[1])
        bias = self.distances(places[:, None] - places + 5)[..., 0]
        if self.fused:
            return x + self.o(nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias))
        weights = (q @ k.transpose(-2, -1) / WIDTH**0.5 + bias).softmax(-1)
        return x + self.o(weights @ v)
