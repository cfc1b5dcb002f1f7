"""Pictures of a micro-batch, as the vision tower takes them. Imports torch alone: exports have this file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

CHANNELS = 3


@dataclass(frozen=True)
class Pictures:
    """Pictures in the order of their `[IMG]` tokens: sample by sample, from left to right.

    Both tensors are what the Pixtral processor of transformers calls `pixel_values` and `image_sizes`.

    Attributes:
        pixel_values: float32 `[n, 3, H, W]`, normalised, each picture at the top left and padded with zeros on the
            right and below to the largest height and width among them.
        sizes: int64 `[n, 2]`, height and width in pixels without the padding. Always in host memory: the tower cuts its
            input by them, for which the host would wait for a device.
    """

    pixel_values: Tensor
    sizes: Tensor

    @classmethod
    def none(cls) -> Pictures:
        """No pictures, of a text-only micro-batch."""
        return cls(torch.zeros(0, CHANNELS, 0, 0), torch.zeros(0, 2, dtype=torch.int64))

    @classmethod
    def of(cls, pictures: Sequence[Tensor]) -> Pictures:
        """Pictures of float32 `[3, height, width]` each, of any sizes; none for an empty sequence."""
        if not pictures:
            return cls.none()
        sizes = torch.tensor([each.shape[1:] for each in pictures], dtype=torch.int64)
        height, width = sizes.amax(dim=0).tolist()
        padded = [pad(each, (0, width - each.shape[2], 0, height - each.shape[1])) for each in pictures]
        return cls(torch.stack(padded), sizes)

    @classmethod
    def joined(cls, parts: Sequence[Pictures]) -> Pictures:
        """The pictures of several batches, one after another."""
        return cls.of([each for part in parts for each in part.each()])

    def part(self, begin: int, end: int) -> Pictures:
        """The pictures from `begin` to before `end`."""
        return Pictures(self.pixel_values[begin:end], self.sizes[begin:end])

    def each(self) -> list[Tensor]:
        """Every picture by itself, `[3, height, width]` without padding."""
        sizes = self.sizes.tolist()
        return [one[:, :height, :width] for one, (height, width) in zip(self.pixel_values, sizes, strict=True)]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.sizes)

    def pin_memory(self) -> Pictures:
        """The same in page-locked memory; torch's data loader calls it."""
        return replace(self, pixel_values=self.pixel_values.pin_memory()) if len(self) else self

    def to(self, device: torch.device) -> Pictures:
        """The same with pixel values on a device, by a copy that the host does not wait for if they are pinned."""
        return replace(self, pixel_values=self.pixel_values.to(device, non_blocking=True))


def image_index(tokens: Tensor, image_token_id: int, begin: int = 0) -> Tensor:
    """Where the `[IMG]` tokens of the clean stream are: int64 `[n]`, in the order of their pictures.

    Args:
        tokens: int64 `[b, S]`, `[noisy | clean]` or clean alone. On a device the host waits for it.
        image_token_id: of the model.
        begin: of the clean stream.

    Returns:
        Indices into the flattened `[S * b]` embeddings.
    """
    row, position = (tokens[:, begin:] == image_token_id).nonzero(as_tuple=True)
    return (begin + position) * len(tokens) + row
