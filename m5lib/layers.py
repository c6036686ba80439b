"""One transformer block, the two ways to a summary, and whitening. Nothing knows of modalities.

>>> block = AttentionBlock(256, Block(heads=4))
>>> weights = []  # (B, heads, L, L), appended only where a list is given
>>> y = block(x, valid, seen=weights)  # (B, L, 256) -> (B, L, 256)
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from m5lib.spec import Block


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x), the approximation that CLIP and the released joint encoder use."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": F.gelu, "quick_gelu": quick_gelu}


def attention_weights(
    q: Float[Tensor, "B H L E"], k: Float[Tensor, "B H K E"], readable: Bool[Tensor, "B K"]
) -> Float[Tensor, "B H L K"]:
    """softmax(q kᵀ / √E) over the readable keys."""
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return logits.masked_fill(~readable[:, None, None], float("-inf")).softmax(dim=-1)


def attention(
    q: Float[Tensor, "B H L E"],
    k: Float[Tensor, "B H K E"],
    v: Float[Tensor, "B H K E"],
    readable: Bool[Tensor, "B K"],
    dropout: float = 0.0,
) -> Float[Tensor, "B H L E"]:
    """softmax(q kᵀ / √E) v over the readable keys, with dropout on the weights.

    Fused where that pays. On processors it does not: torch's fused kernel takes five times as long
    backwards in bf16 (``benchmarks/attention.json``), and streams are short.
    """
    if q.device.type != "cpu":
        there = readable[:, None, None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=there, dropout_p=dropout)
    weights = F.dropout(attention_weights(q, k, readable), dropout, training=dropout > 0)
    return weights.to(v.dtype) @ v


class AttentionBlock(nn.Module):
    """Multi-head attention and a feed-forward layer, each with a residual.

    Tokens read ``context``; without one they read themselves. A product of which no context token
    is valid reads all of them alike, which keeps its numbers finite: nobody reads the result (see
    :class:`m5lib.model.Model`).
    """

    def __init__(self, width: int, block: Block):
        super().__init__()
        if width % block.heads:
            raise ValueError(f"width {width} is not a multiple of {block.heads} heads")
        self.block = block
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, round(block.hidden * width))
        self.down = nn.Linear(round(block.hidden * width), width)
        self.norm_attention = nn.LayerNorm(width, eps=block.eps)
        self.norm_feed = nn.LayerNorm(width, eps=block.eps)

    def attend(
        self,
        x: Float[Tensor, "B L D"],
        context: Float[Tensor, "B K D"],
        readable: Bool[Tensor, "B K"],
        seen: list[Tensor] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Scaled dot-product attention of ``x`` over the readable tokens of ``context``."""
        width = x.shape[-1]
        if context is x:  # one product of matrices instead of two
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            q = F.linear(x, weight[:width], bias[:width])
            k, v = F.linear(context, weight[width:], bias[width:]).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.block.heads, -1)).transpose(1, 2) for t in (q, k, v))
        readable = readable | ~readable.any(dim=1, keepdim=True)
        if seen is not None:
            seen.append(attention_weights(q, k, readable))
        mixed = attention(q, k, v, readable, self.block.dropout if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def feed(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The feed-forward layer."""
        return self.down(ACTIVATIONS[self.block.activation](self.up(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.block.dropout, self.training)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        readable: Bool[Tensor, "B K"],
        context: Float[Tensor, "B K D"] | None = None,
        seen: list[Tensor] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """(B, L, D) -> (B, L, D).

        Args:
            readable: validity of the context (of ``x`` where there is none).
            seen: the attention weights (B, H, L, K) are appended to it.
        """
        if self.block.norm == "pre":
            normed = self.norm_attention(x)
            read = normed if context is None else self.norm_attention(context)
            x = x + self._drop(self.attend(normed, read, readable, seen))
            return x + self._drop(self.feed(self.norm_feed(x)))
        read = x if context is None else context
        x = self.norm_attention(x + self._drop(self.attend(x, read, readable, seen)))
        return self.norm_feed(x + self._drop(self.feed(x)))


def first_token(x: Float[Tensor, "B L D"], valid: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
    """The summary token; zero where the modality is absent."""
    return x[:, 0] * valid[:, :1]


def mean_token(x: Float[Tensor, "B L D"], valid: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
    """The mean of the tokens that are there; zero where the modality is absent."""
    weight = valid[..., None].to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1)


class Whitening(nn.Module):
    """Decorrelate vectors with statistics fitted beforehand, without labels: (x - mean) W, W = V (Λ
    + ε λ₁)^-½.

    A few directions (gender, colour) carry most of a vector's length and drown the others in a
    cosine; afterwards all weigh alike. V and Λ are the eigenvectors and values of the covariance; ε
    = 0.01 of the largest keeps directions without content from being blown up. The identity until
    :meth:`fit`. Buffers, saved with the model. (Su et al. 2021, arXiv 2103.15316, for sentence
    vectors.)
    """

    def __init__(self, width: int, shrink: float = 0.01):
        super().__init__()
        self.shrink = shrink
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("matrix", torch.eye(width))

    @torch.no_grad()
    def fit(self, vectors: Float[Tensor, "N D"]) -> None:
        """Take mean and covariance of the vectors; fewer than two leave it as it is."""
        if len(vectors) < 2:
            return
        vectors = vectors.double()
        values, basis = torch.linalg.eigh(torch.cov(vectors.T))
        values = values.clamp(min=0) + self.shrink * values.max().clamp(min=1e-12)
        self.mean.copy_(vectors.mean(0))
        self.matrix.copy_(basis * values.rsqrt())

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """(B, D) -> (B, D)."""
        return (x.float() - self.mean) @ self.matrix
