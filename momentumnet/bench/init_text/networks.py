"""The networks of ``bench init-text``: one decoder of characters, by where its norms are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from momentumnet.bench.networks.language_models import CausalDecoder

POST, PRE, FREE = "post-norm", "pre-norm", "norm-free"
NETWORKS = (POST, PRE, FREE)


class CharacterDecoder(CausalDecoder):
    """`CausalDecoder` as a function from tokens ``(batch, length)`` to logits ``(batch, length, vocabulary)``."""

    def forward(self, tokens: Tensor) -> Tensor:
        """The logits of each next token. Alphabets are small: there is no need for chunks."""
        logits: Tensor = self.head(self.hidden(tokens))
        return logits


def build(network: str, seed: int, *, depth: int, width: int, length: int, vocabulary: int) -> nn.Module:
    """The network with the seed's weights of PyTorch.

    ``norm-free`` is the post-norm network: T-Fixup, its only initialisation, takes the norms out.
    """
    torch.manual_seed(seed)
    return CharacterDecoder(depth=depth, width=width, length=length, vocabulary=vocabulary, norm_first=network == PRE)
