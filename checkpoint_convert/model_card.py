"""The `README.md` of an export: model, training stages, data and code versions, from the checkpoint's records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoint_convert.checkpoints import Record
from checkpoint_convert.export_config import stages_begun
from nld_train.config.counts import parameter_count
from nld_train.config.plan import stage_plans, tokens_per_step
from nld_train.config.schema import Config, ModelConfig, SourceConfig
from nld_train.outside_json import read_object
from nld_train.printable import markdown, markdown_code, printable_json
from nld_train.revision import PACKAGE, SOFTWARE, UNKNOWN, software

_USE = {
    "nld": """from transformers import AutoModel, AutoTokenizer

model = AutoModel.from_pretrained({name}, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained({name})
ids = tokenizer("...", return_tensors="pt").input_ids
text, nfe = model.generate(ids, max_new_tokens=64, block_length={block}, threshold=0.9)""",
    "ministral3": """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({name})
tokenizer = AutoTokenizer.from_pretrained({name})""",
}
_WHAT = {
    "nld": "It decodes autoregressively, by block diffusion and by linear self-speculation.",
    "ministral3": "It is a plain Ministral3 decoder.",
}


def model_card(record: Record, model: ModelConfig, name: str, output_format: str, dtype: str) -> str:
    """The model card as Markdown.

    Args:
        record: the records of the checkpoint.
        model: its model.
        name: of the export.
        output_format: `nld` or `ministral3`.
        dtype: name of the type of the weights.
    """
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "",
        f"# {markdown(name)}",
        "",
        f"A language model of {parameter_count(model):,} parameters ({model.num_hidden_layers} layers, "
        f"width {model.hidden_size}, {dtype}). {_WHAT[output_format]}",
        "",
        "```python",
        _USE[output_format].format(name=printable_json(name), block=record.block_size),
        "```",
        "",
        *(_training(record, record.config) if record.config else _untrained(record)),
    ]
    return "\n".join(lines) + "\n"


def _untrained(record: Record) -> list[str]:
    origin = f", an import of a {markdown(str(record.imported.get('architecture')))}" if record.imported else ""
    exported = f"Exported by {PACKAGE}, {_version(software())}."
    weights = f"None here: the weights are those of {markdown_code(record.directory.name)}{origin}."
    return ["## Training", "", weights, "", exported]


def _training(record: Record, config: Config) -> list[str]:
    start = markdown_code(config.init.checkpoint) if config.init.checkpoint else "random"
    step = record.progress.get("step", "unknown")
    return [
        "## Training",
        "",
        *_stage_table(record, config),
        "",
        f"- Global batch: {config.batch.global_size} samples of {config.batch.sequence_length} tokens",
        f"- Blocks of {config.diffusion.block_size}, noise levels {config.diffusion.levels}, "
        f"documents {config.data.documents}, seed {config.run.seed}",
        f"- Starting weights: {start}",
        f"- Checkpoint: step {step} of run {markdown_code(config.run.name)}",
        *_code(record),
        "",
        "## Data",
        "",
        *_data(record, config),
    ]


def _stage_table(record: Record, config: Config) -> list[str]:
    begun, last = stages_begun(record), record.progress.get("stage")
    rows = ["| Stage | Tokens | Steps | alpha | Averaging | Learning rate |", "|---|---|---|---|---|---|"]
    for plan in stage_plans(config):
        if plan.name in begun:
            steps = record.progress["stage_step"] if plan.name == last else plan.steps
            schedule = plan.stage.schedule
            rate = f"{schedule.learning_rate:g} -> {schedule.final_learning_rate:g}"
            tokens = f"{steps * tokens_per_step(config):,} of {plan.tokens:,}"
            objective, averaging = plan.kind.objective(plan.stage), plan.stage.averaging
            rows.append(f"| {markdown(plan.name)} | {tokens} | {steps} | {objective} | {averaging} | {rate} |")
    return rows


def _code(record: Record) -> list[str]:
    """Versions of the code that trained the model, as recorded in the checkpoint, and of the exporting code."""
    noted = record.directory / SOFTWARE
    trained = read_object(noted) if noted.is_file() else {}
    return [f"- Trained by {PACKAGE}, {_version(trained)}", f"- Exported by {PACKAGE}, {_version(software())}"]


def _version(found: dict[str, Any]) -> str:
    version, commit = (markdown(str(found.get(key, UNKNOWN))) for key in ("version", "git_revision"))
    return f"version {version}, commit {commit}"


def _data(record: Record, config: Config) -> list[str]:
    lines = []
    for stage in stages_begun(record):
        fingerprint = record.progress.get("data", {}).get(stage)
        for source in config.stages[stage].train or config.data.train:
            lines.append(f"- {markdown(stage)}: {_source(source)}")
        lines.append(f"- {markdown(stage)}: fingerprint of data and order {markdown_code(str(fingerprint))}")
    return lines


def _source(source: SourceConfig) -> str:
    from nld_train.data.manifest import read_manifest

    manifest = read_manifest(source.prefix)
    where = f"{markdown_code(Path(source.prefix).name)} (weight {source.weight:g})"
    if manifest is None:
        return f"{where}, its manifest was not found"
    return (
        f"{where}, {manifest.documents:,} documents, {manifest.tokens:,} tokens, "
        f"tokenizer {markdown_code(manifest.tokenizer_hash[:12])}, "
        f"fingerprint {markdown_code(manifest.fingerprint[:12])}"
    )
