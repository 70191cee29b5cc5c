"""A small decoder-only transformer: each token is predicted from those before it.

Shapes: ``B`` sequences in a batch, ``T`` tokens in a sequence, ``D`` numbers a token.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override


class Transformer(nn.Module):
    """Pre-norm blocks of causal attention and a perceptron, between two embeddings.

    Positions are learned. Input and output embedding are separate. What is returned at
    a position depends on the tokens up to there and on none after it.

    Args:
        vocabulary: Different tokens.
        length: Tokens of a sequence at most.
        width: Numbers that stand for a token inside; ``heads`` divides it.
        depth: Blocks.
        heads: Of attention in each block.
        dropout: Share of activations dropped at the end of attention and perceptron.

    Raises:
        ValueError: If ``heads`` does not divide ``width``.

    References:
        Vaswani et al., "Attention Is All You Need", NeurIPS 2017; Radford et al.,
        "Language Models are Unsupervised Multitask Learners", 2019, for the layout.

    Example:
        >>> net = Transformer(vocabulary=256, length=8, width=32, depth=1, heads=2)
        >>> net(torch.zeros(2, 5, dtype=torch.int64)).shape
        torch.Size([2, 5, 256])
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        *,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"`heads` must divide `width`, got {heads} heads for a width of "
                f"{width}. Each head gets width / heads numbers of a token."
            )
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(length, width)
        self.blocks = nn.Sequential(
            *(Block(width, heads, dropout) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)  # as GPT-2 begins

    @override
    def forward(self, x: Int64[Tensor, "B T"]) -> Float[Tensor, "B T vocabulary"]:
        places = torch.arange(x.shape[1], device=x.device)
        logits: Tensor = self.head(
            self.norm(self.blocks(self.tokens(x) + self.places(places)))
        )
        return logits


class Block(nn.Module):
    """Causal attention, then a perceptron, each on normalised inputs and added to them.

    PyTorch's attention is called as a function: its layers take another path where no
    gradient is wanted, and would score by other kernels than they train with.

    Args:
        width: As for the network.
        heads: As for the network.
        dropout: As for the network.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.into, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    @override
    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        x = x + self.dropout(self._attend(self.norm1(x)))
        out: Tensor = x + self.dropout(self.perceptron(self.norm2(x)))
        return out

    def _attend(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        # (B, T, 3 D) to three of (B, heads, T, D / heads)
        parts = self.into(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        found = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True
        )
        mixed: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return mixed
