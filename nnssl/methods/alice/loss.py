"""How Alice compares a student and a target: cosine or cross-entropy (methods.md 4.3), of whole crops or tokens.

Tokens go through conditional anatomical semantic alignment (CASA, eq. 3-4), where the visible tokens of one view attend
to the tokens of another.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from nnssl.core.distributed import all_reduce_sum, world_size
from nnssl.networks.contrastive import l2_normalise

STUDENT_TEMPERATURE = 0.1  # [C]
TEACHER_TEMPERATURES = (0.008, 0.01)  # first and last of the warm-up [C]; float16 would overflow
_WARMUP_EPOCHS = 30  # [C]
_CENTRE_MOMENTUM = 0.9  # [C]


def cosine_distance(student: Tensor, target: Tensor) -> Tensor:
    """Return 2 - 2 cos, averaged over all vectors (BYOL, eq. 2).

    Args:
        student: (..., d) floating.
        target: the same shape; gets no gradient.

    Returns:
        Scalar in [0, 4], at least float32; a zero vector counts as orthogonal to any other.
    """
    cosine = (l2_normalise(student) * l2_normalise(target.detach())).sum(-1)
    return (2 - 2 * cosine).mean()


def teacher_temperature(epoch: int) -> float:
    """Temperature of the authors' code: linear over the first 30 epochs, then constant."""
    return float(np.interp(epoch, (0, _WARMUP_EPOCHS - 1), TEACHER_TEMPERATURES))


class CentredCrossEntropy(nn.Module):
    """DINO's loss as in Alice's code: H(softmax((t - c) / T_t), softmax(s / 0.1)), averaged over all vectors.

    The centre c follows the mean of the targets of all processes. Everything is computed in float32 or wider.

    Args:
        width: d of the vectors.
    """

    centre: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(width))

    def forward(self, student: Tensor, target: Tensor, temperature: Tensor | float) -> Tensor:
        """Scalar for vectors (..., d); `temperature` is T_t, and the target gets no gradient."""
        wide = torch.promote_types(student.dtype, torch.float32)
        with torch.autocast(student.device.type, enabled=False):
            probability = ((target.detach().to(wide) - self.centre) / temperature).softmax(-1)
            surprise = -(student.to(wide) / STUDENT_TEMPERATURE).log_softmax(-1)
            return (probability * surprise).sum(-1).mean()

    @torch.no_grad()
    def follow(self, target: Tensor) -> None:
        """Move the centre a tenth of the way to the mean of the targets (..., d); every process must call it."""
        mean = all_reduce_sum(target.flatten(0, -2).to(self.centre.dtype).mean(0)) / world_size()
        self.centre.lerp_(mean, 1 - _CENTRE_MOMENTUM)


class Attention(nn.Module):
    """Scaled dot-product attention softmax(q k^T / sqrt(d_k)) v of several heads, without biases.

    Args:
        width: d of keys and values.
        heads: number of heads.
        head_width: d_k of a head; None: width / heads.
        dropout: of the attention weights.
        query_width: width of the queries; None: d.
    """

    def __init__(
        self, width: int, heads: int = 1, head_width: int | None = None, dropout: float = 0.0,
        query_width: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads, inner = heads, heads * (head_width or width // heads)
        self.query = nn.Linear(query_width or width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        """Map queries (B, n, d) and a context (B, m, d) to (B, n, heads * d_k)."""
        q = self.query(query).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k = self.key(context).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        v = self.value(context).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return (self.dropout(attention_weights(q, k)) @ v).transpose(1, 2).flatten(2)


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(d_k)) (..., n, m) of queries (..., n, d_k) and keys (..., m, d_k); rows sum to 1."""
    return (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)


class PaperCasa(nn.Module):
    """The paper's module: q = LN(V) W_q, k and v from LN(H), attention, projection.

    The query is not added to the result: student and target share it and would agree regardless of their contexts
    (methods.md 4.2).

    Args:
        width: d of the context and of the result.
        query_width: of the visible tokens.
        heads: number of heads; the paper divides by sqrt(d), as one head does.
        bias: of the projection; a batch norm behind it removes it.
    """

    def __init__(self, width: int, query_width: int, heads: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.norm_query, self.norm_context = nn.LayerNorm(query_width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, query_width=query_width)
        self.projection = nn.Linear(width, width, bias=bias)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        """Map visible tokens (B, n, query_width) and the tokens of a view (B, m, d) to (B, n, d)."""
        attended = self.attention(self.norm_query(query), self.norm_context(context))
        projected: Tensor = self.projection(attended)
        return projected


class CodeCasa(nn.Module):
    """The module of the authors' code: it adds the query, normalises afterwards, and has a feed-forward layer.

    Args:
        width: d of all tokens.
        inner: of the feed-forward layer.
        heads, head_width: of the attention.
        dropout: of the attention weights and after both layers.
    """

    def __init__(
        self, width: int, inner: int = 2048, heads: int = 8, head_width: int = 64, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.attention = Attention(width, heads, head_width, dropout)
        self.projection = nn.Linear(heads * head_width, width, bias=False)
        self.feed_forward = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))
        # 1e-6 as in the authors' code
        self.norm_attention, self.norm_output = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        """Map visible tokens (B, n, d) and the tokens of a view (B, m, d) to (B, n, d)."""
        attended = self.dropout(self.projection(self.attention(query, context)))
        tokens = self.norm_attention(query + attended)
        output: Tensor = self.norm_output(tokens + self.dropout(self.feed_forward(tokens)))
        return output
