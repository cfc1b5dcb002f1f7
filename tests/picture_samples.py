"""Samples of conversations about drawn pictures, made as the data loader makes those of a set."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pictures import drawn
from torch.utils.data import Dataset

from nld_train.config.image_tokens import image_tokens
from nld_train.config.schema import Config
from nld_train.masking.noise import draw_noise
from nld_train.masking.noisy_stream import answer_stream, fit

SIZES = [(8, 8), (16, 8), (8, 24)]
NOISY = 20


class PictureSamples(Dataset[Any]):
    """Samples of `batch.sequence_length` tokens: one or two conversations, with and without a picture.

    Every third sample has none, so that of two data-parallel ranks one can have a micro-batch without pictures.
    """

    def __init__(self, config: Config) -> None:
        self.config = config

    def __getitem__(self, index: int) -> dict[str, Any]:
        config, length = self.config, self.config.batch.sequence_length
        assert config.model.vision is not None
        generator = np.random.default_rng(index)
        tokens, documents, answers, pictures = [], [], [], []
        while len(tokens) < length + 1:
            size = SIZES[generator.integers(len(SIZES))]
            seen = image_tokens(config.model.vision, size) if index % 3 and len(tokens) < length - 12 else []
            pictures += [drawn(size, int(generator.integers(1000)))] if seen else []
            answer = int(generator.integers(2, 7))
            own = [*seen, *generator.integers(20, 67, 3).tolist(), *generator.integers(20, 67, answer).tolist()]
            documents += [documents[-1] + 1 if documents else 0] * len(own)
            answers += [False] * (len(own) - answer) + [True] * answer
            tokens += own
        whole, document, is_answer = (np.array(each[: length + 1]) for each in (tokens, documents, answers))
        size = config.diffusion.block_size
        order = generator.random(length)
        stream = fit(answer_stream(document[:-1], is_answer[:-1], size), NOISY, size, order)
        noise = draw_noise(
            config.diffusion, 1, "sft", index, config.batch.global_size, stream.maskable, stream.blocks, level=None
        )
        arrays = {
            "tokens": whole,
            "documents": document,
            "supervised": is_answer[1:] & (document[1:] == document[:-1]),
            "noisy_tokens": stream.tokens(whole[:-1], config.model.eos_token_id, config.model.mask_token_id),
            "blocks": stream.blocks,
            "begins": stream.begins,
            "masked": noise.masked,
            "probability": noise.probability,
            "maskable": stream.maskable,
        }
        sample: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return sample | {"sample_index": torch.tensor(index), "pictures": pictures}
