"""One transformer block. Nothing here knows of modalities."""

from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x), the approximation that CLIP and the released joint encoder use."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": F.gelu, "quick_gelu": quick_gelu}


def check_choices(settings) -> None:
    """Raises ``ValueError``, with the known names, where a ``Literal`` field of a dataclass holds
    something else."""
    for name, hint in get_type_hints(type(settings)).items():
        value = getattr(settings, name, None)
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise ValueError(
                f"{type(settings).__name__}: unknown {name} {value!r}: known are "
                f"{list(get_args(hint))}"
            )


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
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=readable[:, None, None], dropout_p=dropout
        )
    weights = (
        (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5)
        .masked_fill(~readable[:, None, None], float("-inf"))
        .softmax(dim=-1)
    )
    return F.dropout(weights, dropout, training=dropout > 0).to(v.dtype) @ v


@dataclass(frozen=True)
class Block:
    """Settings of one transformer block.

    ``norm="post"`` is BERT's order (add, then normalise), ``"pre"`` is CLIP's. ``hidden`` is the
    width of the feed-forward layer as a multiple of the model's width. ``dropout`` acts on
    attention weights and on both residual branches.
    """

    heads: int = 4
    hidden: float = 4.0
    norm: Literal["pre", "post"] = "pre"
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    dropout: float = 0.1
    eps: float = 1e-6

    def __post_init__(self):
        check_choices(self)


class AttentionBlock(nn.Module):
    """Multi-head attention and a feed-forward layer, each with a residual.

    Tokens read ``context``; without one they read themselves. A product of which no context token
    is valid reads all of them alike,
    which keeps its numbers finite: nobody reads the result (see :class:`m5lib.model.Model`).
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
    ) -> Float[Tensor, "B L D"]:
        """Scaled dot-product attention of ``x`` over the readable tokens of ``context``."""
        width = x.shape[-1]
        if context is x:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        else:
            q = F.linear(x, self.qkv.weight[:width], self.qkv.bias[:width])
            k, v = F.linear(context, self.qkv.weight[width:], self.qkv.bias[width:]).chunk(
                2, dim=-1
            )
        split = lambda t: t.unflatten(-1, (self.block.heads, -1)).transpose(1, 2)  # noqa: E731  (B, heads, tokens, D / heads)
        readable = readable | ~readable.any(dim=1, keepdim=True)
        drop = self.block.dropout if self.training else 0.0
        mixed = attention(split(q), split(k), split(v), readable, drop)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def feed(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The feed-forward layer."""
        return self.down(ACTIVATIONS[self.block.activation](self.up(x)))

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        readable: Bool[Tensor, "B K"],
        context: Float[Tensor, "B K D"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """(B, L, D) -> (B, L, D). ``readable`` is the validity of the context (of ``x`` where there
        is none)."""
        drop = lambda t: F.dropout(t, self.block.dropout, self.training)  # noqa: E731
        if self.block.norm == "pre":
            normed = self.norm_attention(x)
            read = normed if context is None else self.norm_attention(context)
            x = x + drop(self.attend(normed, read, readable))
            return x + drop(self.feed(self.norm_feed(x)))
        read = x if context is None else context
        x = self.norm_attention(x + drop(self.attend(x, read, readable)))
        return self.norm_feed(x + drop(self.feed(x)))


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
