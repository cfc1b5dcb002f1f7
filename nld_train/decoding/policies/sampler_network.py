"""The network of the trained sampler: a small Transformer over a block that predicts which predictions are final.

Plain torch. Its inputs are the model's predictions and a projection of the model's embeddings. The projection is stored
with the sampler, so that it needs no weights of the model and works with every engine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nld_train.decoding.policies.commit import BlockView, entropy_of

# Number of likeliest tokens whose embeddings are an input (docs/method.md, "Trained sampler").
PREDICTIONS = 3
# Top-1 probability, top1-top2 margin, mass of the top 3, entropy.
STATISTICS = 4


@dataclass(frozen=True)
class SamplerShape:
    """Sizes of a trained sampler; the defaults are the paper's 4.8 million parameters and 144 features.

    Attributes:
        width: of the hidden states.
        layers: of the Transformer.
        heads: of each attention.
        components: principal components of the embeddings that are kept.
        components_of: what has them: `triple`, the embeddings of the three likeliest tokens together; or `token`, each
            of the three, as in samplers of earlier versions.

    Raises:
        ValueError: a size below 1, a width that is not a multiple of twice the heads, or components of anything else.
    """

    width: int = 384
    layers: int = 4
    heads: int = 6
    components: int = 140
    components_of: str = "triple"

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "components"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not 1 or more")
        if self.width % (2 * self.heads):
            raise ValueError(f"width: {self.width} is not a multiple of twice the {self.heads} heads")
        if self.components_of not in ("triple", "token"):
            raise ValueError(f"components_of: {self.components_of!r} is not triple or token")

    @property
    def features(self) -> int:
        """Inputs of the network at each position."""
        return self.components * (1 if self.components_of == "triple" else PREDICTIONS) + STATISTICS

    def table_shape(self, vocabulary_size: int) -> tuple[int, ...]:
        """`[3, V, components]`, or `[V, components]` where each token has components of its own."""
        own = (vocabulary_size, self.components)
        return (PREDICTIONS, *own) if self.components_of == "triple" else own


@dataclass(frozen=True)
class Observation:
    """The sampler's input for some blocks.

    A committed position counts as a certain prediction: the token itself, with probability 1.

    Attributes:
        top: int64 `[d, T, 3]`, the most likely tokens.
        statistics: float32 `[d, T, 4]`: top-1 probability, margin to the second, mass of the top 3, entropy in nats.
        real: bool `[d, T]`, positions of the block, without padding.
    """

    top: Tensor
    statistics: Tensor
    real: Tensor

    @staticmethod
    def of(view: BlockView) -> Observation:
        """The observation of a denoising pass, on the model's device, which the host does not wait for."""
        device = view.logits.device
        best, top = view.logits.softmax(-1).topk(PREDICTIONS)
        entropy = entropy_of(view.logits)
        statistics = torch.stack([best[..., 0], best[..., 0] - best[..., 1], best.sum(-1), entropy], -1)
        certain = torch.ones_like(statistics[0, 0])
        certain[-1] = 0.0
        hidden = view.masked.unsqueeze(-1).to(device)
        return Observation(
            top=torch.where(hidden, top, view.tokens.unsqueeze(-1).to(device)),
            statistics=torch.where(hidden, statistics, certain),
            real=(torch.arange(view.tokens.shape[1]) < view.sizes[:, None]).to(device),
        )

    def cpu(self) -> Observation:
        """The same on the CPU."""
        return Observation(self.top.cpu(), self.statistics.cpu(), self.real.cpu())


class TrainedSampler(nn.Module):
    """A bidirectional Transformer over a block (`docs/method.md`, "Trained sampler").

    Args:
        shape: sizes.
        vocabulary_size: of the model whose predictions are its input.
    """

    # Of `table_shape`: principal components of each token's embedding, or its share in those of a triple at each of the
    # three places, whose sum they are. A buffer, because it is not trained.
    table: Tensor

    def __init__(self, shape: SamplerShape, vocabulary_size: int) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("table", torch.zeros(shape.table_shape(vocabulary_size)))
        self.enter = nn.Linear(shape.features, shape.width)
        layer = nn.TransformerEncoderLayer(
            shape.width, shape.heads, 2 * shape.width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, shape.layers, norm=nn.LayerNorm(shape.width), enable_nested_tensor=False
        )
        self.leave = nn.Linear(shape.width, 1)

    def forward(self, seen: Observation) -> Tensor:
        """Logits of "the most likely token of this pass is the one that is finally committed": `[d, T]`."""
        device = self.table.device
        top = seen.top.to(device)
        if self.shape.components_of == "triple":
            embeddings = self.table[torch.arange(PREDICTIONS, device=device), top].sum(2)
        else:
            embeddings = self.table[top].flatten(2)
        hidden = self.enter(torch.cat([embeddings, seen.statistics.to(device)], -1))
        hidden = hidden + _positions(hidden.shape[1], hidden.shape[2]).to(hidden)
        logits: Tensor = self.leave(self.layers(hidden, src_key_padding_mask=~seen.real.to(device)))
        return logits.squeeze(-1)

    @torch.no_grad()
    def probability(self, view: BlockView) -> Tensor:
        """The probability that a prediction is final: float32 `[d, T]` on the CPU."""
        self.to(view.logits.device)
        final: Tensor = self(Observation.of(view)).sigmoid().cpu()
        return final


def _positions(length: int, width: int) -> Tensor:
    """Sinusoidal encoding of the positions in a block (Vaswani et al. 2017, section 3.5): `[length, width]`."""
    frequencies = torch.exp(torch.arange(0, width, 2) * (-math.log(1e4) / width))
    angles = torch.arange(length)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
