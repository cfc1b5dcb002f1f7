"""Prompts with pictures: which of their tokens carry features of which picture. Exports have this file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, overload

# A model is described without torch.
if TYPE_CHECKING:
    from torch import Tensor

    from nld_train.model.vision.pictures import Pictures


@dataclass(frozen=True, eq=False)
class PicturePrompt(Sequence[int]):
    """The ids of a prompt, as of any other one, and its pictures.

    Attributes:
        ids: with an `[IMG]` token for each feature.
        pictures: in the order of their `[IMG]` tokens.
    """

    ids: Sequence[int]
    pictures: Pictures

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...

    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        """An id, or the ids of a slice, without pictures."""
        return self.ids[index]

    def __len__(self) -> int:
        """Number of ids."""
        return len(self.ids)


def pictures_of(prompt: Sequence[int]) -> Pictures:
    """The pictures of a prompt; none of a sequence of ids alone."""
    if isinstance(prompt, PicturePrompt):
        return prompt.pictures
    from nld_train.model.vision.pictures import Pictures

    return Pictures.none()


@dataclass(frozen=True)
class ImageTokens:
    """The tokens of a vision-language model whose embeddings are features of pictures.

    Attributes:
        token_id: of `[IMG]`.
        edge: pixels of the edge of the square that one of them stands for.
    """

    token_id: int
    edge: int

    @classmethod
    def of(cls, vision: Any) -> ImageTokens | None:
        """Those of a model with this `config.schema.VisionConfig`; None for None."""
        return None if vision is None else cls(vision.image_token_id, vision.patch_size * vision.spatial_merge_size)

    def spans(self, prompt: Sequence[int]) -> list[tuple[int, int]]:
        """For each picture the index of its first `[IMG]` token, and that after its last."""
        at = [index for index, token in enumerate(prompt) if token == self.token_id]
        borders = [0, *accumulate(self._counts(pictures_of(prompt)))]
        return [(at[first], at[end - 1] + 1) for first, end in pairwise(borders)]

    def pictures_from(self, prompt: Sequence[int], start: int) -> list[Tensor]:
        """The pictures whose tokens are at `start` or later, `[3, height, width]` each; `start` is inside of none."""
        pictures = pictures_of(prompt).each()
        return [picture for picture, (first, _) in zip(pictures, self.spans(prompt), strict=True) if first >= start]

    def same(self, prompt: Sequence[int], common: int, known: Sequence[Tensor]) -> int:
        """How many of the first tokens have the same features, if the first `common` of them are the same.

        Args:
            prompt: a prompt.
            common: tokens that it has in common with another one.
            known: the pictures of that one.

        Returns:
            `common`, or the start of the first picture that is another, or has tokens beyond these.
        """
        import torch

        pictures = pictures_of(prompt).each()
        for number, (first, end) in enumerate(self.spans(prompt)):
            if first >= common:
                break
            if end > common or number >= len(known) or not torch.equal(known[number], pictures[number]):
                return first
        return common

    def with_pictures(self, prompts: Sequence[Sequence[int]], pictures: Pictures) -> list[Sequence[int]]:
        """Prompts with their pictures.

        Args:
            prompts: ids.
            pictures: of all of them, in the order of prompts and `[IMG]` tokens.

        Raises:
            ValueError: there are pictures left that have no tokens.
        """
        from nld_train.model.vision.pictures import Pictures

        counts, each = self._counts(pictures), pictures.each()
        found: list[Sequence[int]] = []
        taken = 0
        for prompt in prompts:
            first, open_tokens = taken, sum(token == self.token_id for token in prompt)
            while open_tokens > 0 and taken < len(each):
                open_tokens -= counts[taken]
                taken += 1
            found.append(PicturePrompt(prompt, Pictures.of(each[first:taken])) if taken > first else prompt)
        if taken < len(each):
            raise ValueError(
                f"pixel_values: {len(each)} pictures, and the [IMG] tokens (id {self.token_id}) of the prompts are "
                f"those of {taken}"
            )
        return found

    def check(self, number: int, prompt: Sequence[int]) -> None:
        """Refuses a prompt whose `[IMG]` tokens are not those of its pictures.

        Args:
            number: of the prompt, for the message.
            prompt: a prompt.

        Raises:
            ValueError: a size that is no multiple of `edge`; more or fewer `[IMG]` tokens than the pictures have.
        """
        pictures = pictures_of(prompt)
        for index, (height, width) in enumerate(pictures.sizes.tolist()):
            if height % self.edge or width % self.edge or not height * width:
                raise ValueError(
                    f"prompts: picture {index} of prompt {number} has {width} x {height} pixels; both must be "
                    f"multiples of {self.edge}, as the processor resizes pictures"
                )
        found, needed = sum(token == self.token_id for token in prompt), sum(self._counts(pictures))
        if found != needed:
            raise ValueError(
                f"prompts: prompt {number} has {found} [IMG] tokens (id {self.token_id}), and "
                f"{_needs(pictures, needed)}"
            )

    def _counts(self, pictures: Pictures) -> list[int]:
        counts: list[int] = (pictures.sizes // self.edge).prod(dim=1).tolist()
        return counts


def _needs(pictures: Pictures, tokens: int) -> str:
    if len(pictures) == 0:
        return "no picture"
    return f"its {len(pictures)} {'picture needs' if len(pictures) == 1 else 'pictures need'} {tokens}"


def refuse_pictures(number: int, prompt: Sequence[int]) -> None:
    """Refuses a prompt with pictures for a model that reads text alone.

    Raises:
        ValueError: it has some.
    """
    if isinstance(prompt, PicturePrompt) and (count := len(prompt.pictures)):
        raise ValueError(
            f"prompts: prompt {number} has {count} picture{'s' if count > 1 else ''}, and this model has no vision "
            "tower: it reads text alone"
        )
