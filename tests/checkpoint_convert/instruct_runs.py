"""A tiny model that is fine-tuned on conversations, from a directory whose chat template is another one."""

from __future__ import annotations

import json
from pathlib import Path

import chat_templates
from hugging_face_sources import GENERATION, TEXT, Source, larger, write_source
from tiny_runs import train_here
from trained_runs import MODEL

from nld_train.commands import data as cli

VOCABULARY, SAMPLE_TOKENS, SAMPLES_PER_STEP, BLOCK_SIZE, ALPHA = 300, 96, 8, 8, 0.5
QUESTIONS = ("copy ab", "copy ccd", "say a", "upper x")


def write_base(folder: Path, source: Source) -> Path:
    """A directory of a base model, with a tokenizer that has a chat template of its own, a card and a license."""
    text = larger(TEXT, vocab_size=VOCABULARY, pad_token_id=0)
    directory = folder / "models--maker--base" / "snapshots" / source.name
    write_source(directory, source, text)
    for path in directory.glob("tokenizer*"):
        path.unlink()
    tokenizer = chat_templates.hugging_face(chat_templates.byte_tokenizer(), chat_templates.PLAIN)
    tokenizer.save_pretrained(directory)
    (directory / "generation_config.json").write_text(json.dumps({**GENERATION, "pad_token_id": 0}))
    (directory / "README.md").write_text(
        "---\nlicense: other\nlicense_name: tiny\nlicense_link: LICENSE\nlanguage: fr\n---\n# Base\n"
    )
    (directory / "LICENSE").write_text("Terms.\n")
    return directory


def prepare(folder: Path, tokenizer: Path) -> None:
    """Conversations that were rendered with ChatML, whose end of a turn is not the tokenizer's end token."""
    answers = {"copy ab": "ab", "copy ccd": "ccd", "say a": "aaaaaaaaaaaa", "upper x": "X"}
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answers[question]}]}
        for question in QUESTIONS * 12
    ]
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "chatml.jinja").write_text(chat_templates.CHATML)
    words = ["prepare", "--chat", f"{folder}/chat.jsonl", "--out", f"{folder}/data", "--name", "chat"]
    words += ["--tokenizer", str(tokenizer), "--chat-template", f"{folder}/chatml.jinja", "--workers", "1"]
    words += ["--chat-template-args", '{"enable_thinking": false}']
    assert cli.main(words) == 0


def tune(folder: Path, directory: Path, base: Path, *overrides: str, steps: int = 1, group: str = "stages=sft") -> Path:
    """Fine-tunes a model on these conversations, with the settings of a group; returns the run's directory."""
    source = f"[{{prefix: {folder}/data/chat, weight: 1}}]"
    return train_here(
        directory,
        *MODEL,
        f"model.vocab_size={VOCABULARY}",
        "model.mask_token_id=3",
        "model.pad_token_id=0",
        "model.rms_norm_eps=3e-5",
        "model.rope_parameters.rope_theta=12345",
        f"init.checkpoint={base}",
        group,
        "data.train=[]",
        "data.validation=[]",
        f"stages.sft.train={source}",
        f"stages.sft.validation={source}",
        f"stages.sft.tokens={steps * SAMPLES_PER_STEP * SAMPLE_TOKENS}",
        f"stages.sft.alpha={ALPHA}",
        "stages.sft.schedule.learning_rate=0.01",
        f"data.tokenizer={base}",
        "data.workers=0",
        "run.name=instruct",
        f"diffusion.block_size={BLOCK_SIZE}",
        f"batch.global_size={SAMPLES_PER_STEP}",
        "batch.micro_size=4",
        f"batch.sequence_length={SAMPLE_TOKENS}",
        "validation.every=0",
        "validation.samples=8",
        "evaluation.every=0",
        "logging.wandb.mode=disabled",
        "execution.device=cpu",
        "execution.timeout_minutes=5",
        *overrides,
    )


def train(folder: Path) -> Path:
    """Base model, conversations, and a run with validation; returns the run's directory."""
    base = write_base(folder, Source("plain"))
    prepare(folder, base)
    return tune(folder, folder / "run", base, "validation.every=10", steps=20)
