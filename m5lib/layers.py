"""Packed tokens, one transformer block, two ways to a summary, whitening; nothing of modalities.

>>> packed = Packed(valid)  # (B, L), of which N tokens are there
>>> y = AttentionBlock(256, Block(heads=4))(packed.pack(x), packed)  # (N, 256)
>>> packed.pad(y)  # (B, L, 256), zeros where nothing is there
"""

from copy import copy

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from m5lib.spec import Block

Tokens, Context = Float[Tensor, "N D"], Float[Tensor, "K D"]
Queries, Keys = Float[Tensor, "B H L E"], Float[Tensor, "B H K E"]
Readable = Bool[Tensor, "B K"] | None
#: On processors rows come in blocks, filled up with zeros: oneDNN plans each shape of a product of
#: matrices anew, which takes longer than a small product itself.
BLOCK, SIDE = 64, 8
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def _rounded_up(count: int, block: int, x: Tensor) -> int:
    return -(-count // block) * block if x.device.type == "cpu" else count


class _Move(torch.autograd.Function):
    """Rows of x by their numbers, zeros for one past the last. None is taken twice, so backwards
    they move back; torch's own would add them up, slowly."""

    @staticmethod
    def forward(ctx, x, index, back):
        ctx.save_for_backward(back, index)
        return torch.cat([x, x.new_zeros(1, *x.shape[1:])]).index_select(0, index)

    @staticmethod
    def backward(ctx, gradient):
        return _Move.apply(gradient, *ctx.saved_tensors), None, None


class Places:
    """N of R rows, each once, in their order, filled up to a :data:`BLOCK` on processors: ``take``
    them, ``put`` them back with zeros elsewhere."""

    def __init__(self, index: Int[Tensor, " N"], rows: int):
        size = _rounded_up(len(index), BLOCK, index)
        numbers = torch.arange(len(index), device=index.device)
        self.same = len(index) == rows == size
        self.back = torch.full((rows,), size, device=index.device).scatter_(0, index, numbers)
        self.index = F.pad(index, (0, size - len(index)), value=rows)

    def take(self, x: Shaped[Tensor, "R *S"]) -> Shaped[Tensor, "N *S"]:
        """(R, D) -> (N, D)."""
        return x if self.same else _Move.apply(x, self.index, self.back)

    def put(self, x: Shaped[Tensor, "N *S"]) -> Shaped[Tensor, "R *S"]:
        """(N, D) -> (R, D)."""
        return x if self.same else _Move.apply(x, self.back, self.index)


class Packed:
    """The tokens of (B, L) that are there, one after another, (N, D): layers run on these. Only
    attention needs products side by side: :meth:`rows`, of those that have a token, as long as the
    longest; of all, L long, if ``whole``, so that attention weights are (B, H, L, K)."""

    def __init__(self, valid: Bool[Tensor, "B L"], whole: bool = False):
        self.shape, self.whole, there = valid.shape, whole, valid.any(1) | whole
        index, rows = valid.flatten().nonzero().squeeze(1), int(there.sum())
        row = (there.cumsum(0) - 1)[index // valid.shape[1]]
        self._lay(index, row, min(_rounded_up(rows, SIDE, index), len(valid)))

    def _lay(self, index: Tensor, row: Tensor, rows: int) -> None:
        """Find the cell of each token in the rows."""
        self.places = Places(index, self.shape.numel())
        counts, column, longest = row.bincount(minlength=rows), index % self.shape[1], self.shape[1]
        if not self.whole:
            longest = max(counts.tolist(), default=0)
            column = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
            if len(row) < rows * longest:
                longest = min(_rounded_up(longest, SIDE, row), self.shape[1])
        self.row, self.sides = row, (rows, longest)
        self.cells = Places(row * longest + column, rows * longest)
        there = (self.cells.back < len(row)).view(self.sides)
        self.readable = there | ~there.any(1, keepdim=True) if len(row) < rows * longest else None

    def only(self, marks: Bool[Tensor, "B L"]) -> tuple[Places, "Packed"]:
        """Which of the N are marked, and these packed, in rows of the same products."""
        own = self.places.index[: len(self.row)]
        kept, part = marks.flatten()[own].nonzero().squeeze(1), copy(self)
        part._lay(own[kept], self.row[kept], self.sides[0])
        return Places(kept, len(self.places.index)), part

    def pack(self, x: Float[Tensor, "B L D"]) -> Tokens:
        """What is there."""
        return self.places.take(x.flatten(0, 1))

    def pad(self, x: Tokens) -> Float[Tensor, "B L D"]:
        """The inverse of :meth:`pack`, zeros elsewhere."""
        return self.places.put(x).unflatten(0, self.shape)

    def rows(self, x: Tokens) -> Float[Tensor, "b l D"]:
        """Products side by side, zeros where a row is shorter."""
        return self.cells.put(x).unflatten(0, self.sides)

    def flat(self, rows: Float[Tensor, "b l D"]) -> Tokens:
        """The inverse of :meth:`rows`."""
        return self.cells.take(rows.flatten(0, 1))


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x), the approximation that CLIP and the released joint encoder use."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": F.gelu, "quick_gelu": quick_gelu}


def dropout(x: Float[Tensor, "*S"], rate: float, training: bool = True) -> Float[Tensor, "*S"]:
    """``F.dropout``; on a processor from 16 random bits an element, in half the time."""
    if x.device.type != "cpu" or not training or rate in (0.0, 1.0):
        return F.dropout(x, rate, training)
    draws = torch.empty(x.numel() // 4 + 1, dtype=torch.int64).random_(-(2**63), None)
    low, bits = round(rate * 2**16), draws.view(torch.int16)[: x.numel()].view(x.shape)
    return x * (bits >= low - 2**15).to(x.dtype).mul_(2**16 / (2**16 - low))


def attention_weights(q: Queries, k: Keys, readable: Readable) -> Float[Tensor, "B H L K"]:
    """softmax(q kᵀ / √E) over the readable keys; None: all."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if readable is not None:
        logits = logits.masked_fill(~readable[:, None, None], float("-inf"))
    return logits.softmax(dim=-1)


def attention(q: Queries, k: Keys, v: Keys, readable: Readable, rate: float = 0.0) -> Queries:
    """softmax(q kᵀ / √E) v over the readable keys, with dropout on the weights.

    Fused where that pays: not on processors (five times as long backwards in bf16,
    ``benchmarks/attention.json``), nor by cuDNN (30 ms a new shape, ``benchmarks/cuda.json``).
    """
    if q.device.type != "cpu" and q.numel():
        there = None if readable is None else readable[:, None, None]
        with sdpa_kernel(FUSED):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=there, dropout_p=rate)
    return dropout(attention_weights(q, k, readable), rate).to(v.dtype) @ v


class AttentionBlock(nn.Module):
    """Multi-head attention and a feed-forward layer, each with a residual, on packed tokens.

    Tokens read ``context``; without one they read themselves. Where a product has no token of the
    context, its tokens read a zero vector.
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
        self, x: Tokens, packed: Packed, context: Context, read: Packed, seen: list | None = None
    ) -> Tokens:
        """Scaled dot-product attention of ``x`` over what its product has in ``context``."""
        width, heads = x.shape[-1], self.block.heads
        if context is x:  # one product of matrices instead of two
            q, k, v = packed.rows(self.qkv(x)).chunk(3, dim=-1)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            q = packed.rows(F.linear(x, weight[:width], bias[:width]))
            k, v = read.rows(F.linear(context, weight[width:], bias[width:])).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        if seen is not None:
            seen.append(attention_weights(q, k, read.readable))
        mixed = attention(q, k, v, read.readable, self.block.dropout if self.training else 0.0)
        return self.out(packed.flat(mixed.transpose(1, 2).flatten(2)))

    def feed(self, x: Tokens) -> Tokens:
        """The feed-forward layer."""
        return self.down(ACTIVATIONS[self.block.activation](self.up(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.block.dropout, self.training)

    def forward(
        self,
        x: Tokens,
        packed: Packed,
        context: Context | None = None,
        read: Packed | None = None,
        seen: list[Tensor] | None = None,
    ) -> Tokens:
        """Args: ``packed`` says where the tokens of ``x`` lie, ``read`` those of ``context``; to
        ``seen`` the attention weights (B, H, L, K) are appended (with ``Packed(whole=True)``)."""
        read = packed if read is None else read
        if self.block.norm == "pre":
            normed = self.norm_attention(x)
            context = normed if context is None or context is x else self.norm_attention(context)
            x = x + self._drop(self.attend(normed, packed, context, read, seen))
            return x + self._drop(self.feed(self.norm_feed(x)))
        context = x if context is None else context
        x = self.norm_attention(x + self._drop(self.attend(x, packed, context, read, seen)))
        return self.norm_feed(x + self._drop(self.feed(x)))


def first_token(x: Float[Tensor, "B L D"], valid: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
    """The summary token; zero where the modality is absent."""
    return x[:, 0] * valid[:, :1]


def mean_token(x: Float[Tensor, "B L D"], valid: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
    """The mean of the tokens that are there; zero where the modality is absent."""
    weight = valid[..., None].to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1)


class Whitening(nn.Module):
    """Decorrelate vectors, so that no few directions drown the others in a cosine: (x - mean) W, W
    = V (Λ + ε λ)^-½, V and Λ of their covariance, λ the mean of Λ (Su et al. 2021, arXiv
    2103.15316; ε = 0.3 by validation products). Identity until :meth:`fit`, saved with a model."""

    def __init__(self, width: int, shrink: float = 0.3):
        super().__init__()
        self.shrink = shrink
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("matrix", torch.eye(width))

    @torch.no_grad()
    def fit(self, vectors: Float[Tensor, "N D"]) -> None:
        """Take mean and covariance; fewer than two, or alike but for rounding, change nothing."""
        vectors = vectors.double()
        if not vectors.var(0, correction=0).mean() > 1e-10 * vectors.square().mean():
            return
        values, basis = torch.linalg.eigh(torch.cov(vectors.T))
        values = values.clamp(min=0) + self.shrink * values.mean().clamp(min=1e-12)
        self.mean.copy_(vectors.mean(0))
        self.matrix.copy_(basis * values.rsqrt())

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """(B, D) -> (B, D)."""
        return (x.float() - self.mean) @ self.matrix
