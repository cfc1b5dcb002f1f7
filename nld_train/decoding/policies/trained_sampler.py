"""The trained sampler: a small Transformer over a block that says where a prediction can be committed already.

Plain torch. It sees no weights of the model, only its predictions and a projection of its embeddings that lies among
its own tensors, so that it plugs into every engine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nld_train.decoding.policies.commit import BlockView

# Reference section 7: the most likely predictions whose embeddings are an input.
PREDICTIONS = 3
# Top-1 probability, top1-top2 margin, mass of the top 3, entropy.
STATISTICS = 4


@dataclass(frozen=True)
class SamplerShape:
    """Sizes of a trained sampler; the defaults are the paper's 4.8 million parameters.

    Attributes:
        width: of the hidden states.
        layers: of the Transformer.
        heads: of each attention.
        components: principal components of the embeddings that are kept.

    Raises:
        ValueError: a size below 1, or a width that its heads do not divide into even parts.
    """

    width: int = 384
    layers: int = 4
    heads: int = 6
    components: int = 64

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "components"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not 1 or more")
        if self.width % (2 * self.heads):
            raise ValueError(f"width: {self.width} is not a multiple of twice the {self.heads} heads")


@dataclass(frozen=True)
class Observation:
    """What the sampler sees of some blocks.

    At a committed position it sees a prediction without doubt: the token itself, with probability 1.

    Attributes:
        top: int64 `[d, T, 3]`, the most likely tokens.
        statistics: float32 `[d, T, 4]`: top-1 probability, margin to the second, mass of the top 3, entropy in nats.
        real: bool `[d, T]`, positions that belong to the block.
    """

    top: Tensor
    statistics: Tensor
    real: Tensor

    @staticmethod
    def of(view: BlockView) -> Observation:
        """The observation of a denoising pass, on the CPU."""
        probabilities = view.logits.softmax(-1)
        best, top = (tensor.cpu() for tensor in probabilities.topk(PREDICTIONS))
        statistics = torch.stack([best[..., 0], best[..., 0] - best[..., 1], best.sum(-1), view.entropy], -1)
        certain = statistics.new_tensor([1.0, 1.0, 1.0, 0.0])
        hidden = view.masked.unsqueeze(-1)
        return Observation(
            top=torch.where(hidden, top, view.tokens.unsqueeze(-1)),
            statistics=torch.where(hidden, statistics, certain),
            real=torch.arange(view.tokens.shape[1]) < view.sizes[:, None],
        )


class TrainedSampler(nn.Module):
    """A bidirectional Transformer over a block (reference section 7).

    Args:
        shape: sizes.
        vocabulary_size: of the model whose predictions it reads.
    """

    # Principal components of each token's embedding, `[V, components]`; a buffer, because it is not trained.
    table: Tensor

    def __init__(self, shape: SamplerShape, vocabulary_size: int) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("table", torch.zeros(vocabulary_size, shape.components))
        self.enter = nn.Linear(PREDICTIONS * shape.components + STATISTICS, shape.width)
        layer = nn.TransformerEncoderLayer(
            shape.width, shape.heads, 2 * shape.width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, shape.layers, norm=nn.LayerNorm(shape.width), enable_nested_tensor=False
        )
        self.leave = nn.Linear(shape.width, 1)

    def forward(self, seen: Observation) -> Tensor:
        """Logits of "today's most likely token is the one that is finally committed": `[d, T]`."""
        device = self.table.device
        embeddings = self.table[seen.top.to(device)].flatten(2)
        hidden = self.enter(torch.cat([embeddings, seen.statistics.to(device)], -1))
        hidden = hidden + _positions(hidden.shape[1], hidden.shape[2]).to(hidden)
        logits: Tensor = self.leave(self.layers(hidden, src_key_padding_mask=~seen.real.to(device)))
        return logits.squeeze(-1)


def _positions(length: int, width: int) -> Tensor:
    """Sinusoidal encoding of the positions in a block (Vaswani et al. 2017, section 3.5): `[length, width]`."""
    frequencies = torch.exp(torch.arange(0, width, 2) * (-math.log(1e4) / width))
    angles = torch.arange(length)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


class SamplerPolicy:
    """Commits where a trained sampler is at least this sure that a prediction will last, and always the best position.

    The best one is the model's most confident, which one-token-per-pass decoding would commit: it cannot lead astray.
    From the same state a lower threshold commits a superset; 0 commits the whole block in one pass.

    Args:
        sampler: trained for the model that decodes.
        threshold: least probability.

    Raises:
        ValueError: a threshold outside [0, 1].
    """

    def __init__(self, sampler: TrainedSampler, threshold: float) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold: {threshold} is not in [0, 1]")
        self.sampler = sampler.eval()
        self.threshold = threshold

    @torch.no_grad()
    def choose(self, view: BlockView) -> Tensor:
        """See `policies.CommitPolicy`."""
        self.sampler.to(view.logits.device)
        probability = self.sampler(Observation.of(view)).sigmoid().cpu()
        return (probability >= self.threshold) | view.best(view.confidence, torch.ones_like(view.passes))
