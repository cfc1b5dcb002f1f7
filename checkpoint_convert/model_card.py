"""The `README.md` of an export: model, training stages, data and code versions, from the checkpoint's records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoint_convert.card_metadata import Origins, metadata_lines
from checkpoint_convert.card_results import results
from checkpoint_convert.checkpoints import Record
from checkpoint_convert.export_config import Export, stages_begun
from nld_train.config.counts import parameter_count
from nld_train.config.plan import stage_plans, tokens_per_step
from nld_train.config.schema import Config, ModelConfig, SourceConfig
from nld_train.config.stage_kinds import kind_of
from nld_train.data.manifest import read_manifest
from nld_train.data.sample_sets import train_sources
from nld_train.outside_json import read_object
from nld_train.printable import markdown, markdown_code, one_line, printable_json
from nld_train.revision import PACKAGE, SOFTWARE, UNKNOWN, software

_LOAD = {
    "nld": """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name}, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained({name}, trust_remote_code=True)""",
    "ministral3": """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name})
model = AutoModelForCausalLM.from_pretrained({name})""",
}
_TEXT = """batch = tokenizer("...", return_tensors="pt")"""
_CHAT = """messages = [{{"role": "user", "content": "..."}}]
form = {{"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}}
batch = tokenizer.apply_chat_template(messages, **form{arguments})"""
_GENERATE = {
    "nld": """# One mode or another: the text, and how many forwards it took.
text, forwards = model.ar_generate(**batch, max_new_tokens={tokens})
text, forwards = model.generate(**batch, max_new_tokens={tokens}, block_length={block}, threshold=0.9)
text, forwards = model.linear_spec_generate(**batch, max_new_tokens={tokens}, block_length={block})""",
    "ministral3": "text = model.generate(**batch, max_new_tokens={tokens})",
}
_SHOW = """print(tokenizer.decode(text[0, batch["input_ids"].shape[1] :], skip_special_tokens=True))"""
_PIPELINE = """from transformers import pipeline

ask = pipeline("text-generation", model={name}, trust_remote_code=True)
print(ask({prompt}, max_new_tokens={tokens}, do_sample=False, decoding_mode="linear"{arguments}))"""
_TOOLS = (
    "For tools that know `generate` alone, `decoding_mode` in `generation_config.json` chooses the mode: `ar`, "
    "`diffusion`, `linear` or `quadratic`. It can also be named in a call:"
)
_SERVE = (
    "`python serve.py --decoding-mode linear` in its directory serves it, with an API like OpenAI's (it needs "
    "`transformers[serving]`{more})."
)
_WHAT = {
    "nld": "It decodes autoregressively, by block diffusion and by linear self-speculation.",
    "ministral3": "It is a plain Ministral3 decoder.",
}
# The class of transformers for the plain format with a vision tower.
_WRAPPER = "AutoModelForImageTextToText"
_CONTROL = (
    "Its last stage trained the AR loss alone (alpha 0): block diffusion was **not trained** there, and drafts of "
    "self-speculation are those of earlier stages, if any."
)
_WHOLE_BLOCKS = (
    "It decodes by block diffusion alone: its last stage let the tokens of a text see their whole block "
    "(`dlm_clean`), without an AR loss. Readers that do not know this key decode it wrongly."
)
_NO_AR = (
    "Its last stage had no AR loss (`ar_loss_weight` 0): predictions of the next token, and self-speculation by them, "
    "were **not trained** there."
)
_LORA = (
    "The LoRA of its last stage is **not added** to the weights: it is in `adapter_config.json` and "
    "`adapter_model.safetensors` beside them. `from_pretrained` loads both where PEFT is installed; other readers, "
    "such as servers that are not told of it, have the model before the stage."
)


def model_card(record: Record, model: ModelConfig, export: Export, known: Origins, chat: bool) -> str:
    """The model card as Markdown.

    Args:
        record: the records of the checkpoint.
        model: its model.
        export: what is exported.
        known: about the original model.
        chat: whether the model was trained on conversations, and the export has their chat template.
    """
    tags = (*(("conversational",) if chat else ()), *(("text-diffusion",) if export.output_format == "nld" else ()))
    task = "text-generation" if model.vision is None else "image-text-to-text"
    lines = [
        *metadata_lines(known, export.license, export.languages, tags, task),
        "",
        f"# {markdown(export.name)}",
        "",
        f"{'An instruct' if chat else 'A language'} model of {parameter_count(model):,} parameters "
        f"({model.num_hidden_layers} layers, width {model.hidden_size}, {export.dtype}). {_seen(model)}"
        f"{_what(model, export) if record.clean_stream.block is None else _WHOLE_BLOCKS}",
        "",
        *([_CONTROL, ""] if _is_control(record) else []),
        *([_NO_AR, ""] if not record.clean_stream.ar and record.clean_stream.block is None else []),
        *([_LORA, ""] if export.lora else []),
        "```python",
        *_usage(record, model, export, chat),
        "```",
        "",
        *(_with_tools(record, model, export, chat) if export.output_format == "nld" else []),
        *(_training(record, record.config, known) if record.config else _untrained(record)),
    ]
    return "\n".join(lines) + "\n"


def _seen(model: ModelConfig) -> str:
    """What a vision-language model reads."""
    if model.vision is None:
        return ""
    return (
        "It reads pictures too: `forward` and the methods of generation take `pixel_values` and `image_sizes`, as the "
        "Pixtral processor of transformers returns them. "
    )


def _what(model: ModelConfig, export: Export) -> str:
    if model.vision is not None and export.output_format == "ministral3":
        return "It is a plain Mistral3 model (`Mistral3ForConditionalGeneration`)."
    return _WHAT[export.output_format]


def _is_control(record: Record) -> bool:
    """Whether the last stage on conversations had no diffusion loss, as a control has."""
    run = record.chat_run
    if run is None:
        return False
    stages = [run.config.stages[name] for name in run.stages_begun]
    return [stage.alpha for stage in stages if kind_of(stage).data == "conversations"][-1] == 0


def _usage(record: Record, model: ModelConfig, export: Export, chat: bool) -> list[str]:
    generate = _GENERATE[export.output_format].format(block=record.block_size, tokens=_tokens(model))
    load = _LOAD[export.output_format].format(name=printable_json(export.name))
    if model.vision is not None and export.output_format == "ministral3":
        load = load.replace("AutoModelForCausalLM", _WRAPPER)
    named = "".join(f", {name}={value}" for name, value in _template_arguments(record).items()) if chat else ""
    ask = _CHAT.format(arguments=named) if chat else _TEXT
    return [load, ask, generate, _SHOW]


def _with_tools(record: Record, model: ModelConfig, export: Export, chat: bool) -> list[str]:
    """How tools that know `generate` alone decode in another mode."""
    named = ", ".join(f'"{name}": {value}' for name, value in _template_arguments(record).items()) if chat else ""
    code = _PIPELINE.format(
        name=printable_json(export.name),
        prompt="messages" if chat else '"..."',
        tokens=_tokens(model),
        arguments=f", tokenizer_encode_kwargs={{{named}}}" if named else "",
    )
    serve = _SERVE.format(more="" if model.vision is None else " and torchvision")
    served = [serve, ""] if chat and record.clean_stream.block is None else []
    return [_TOOLS, "", "```python", code, "```", "", *served]


def _tokens(model: ModelConfig) -> int:
    """New tokens of the examples, for which a short context has room too."""
    return min(256, model.max_position_embeddings // 2)


def _template_arguments(record: Record) -> dict[str, str]:
    """The arguments of the chat template with which the conversations were rendered, as expressions in Python.

    Prompts without them would be other ones than those of the training.
    """
    assert record.chat_run is not None
    config, stages = record.chat_run.config, record.chat_run.stages_begun
    manifests = [read_manifest(source.prefix) for name in stages for source in train_sources(config, name)]
    chosen = [manifest for manifest in manifests if manifest is not None and manifest.chat is not None]
    arguments = chosen[-1].arguments.get("chat_request", {}).get("arguments", {}) if chosen else {}
    return {name: one_line(repr(value)) for name, value in arguments.items() if name.isidentifier()}


def _untrained(record: Record) -> list[str]:
    origin = f", an import of a {markdown(str(record.imported.get('architecture')))}" if record.imported else ""
    exported = f"Exported by {PACKAGE}, {_version(software())}."
    weights = f"None here: the weights are those of {markdown_code(record.directory.name)}{origin}."
    return ["## Training", "", weights, "", exported]


def _training(record: Record, config: Config, known: Origins) -> list[str]:
    start = markdown_code(config.init.checkpoint) if config.init.checkpoint else "random"
    base = f", originally {markdown_code(known.base_model)}" if known.base_model else ""
    step = record.progress.get("step", "unknown")
    return [
        "## Training",
        "",
        *_stage_table(record, config),
        "",
        f"- Global batch: {config.batch.global_size} samples of {config.batch.sequence_length} tokens",
        f"- Blocks of {config.diffusion.block_size}, noise levels {config.diffusion.levels}, "
        f"documents {config.data.documents}, seed {config.run.seed}",
        *_conversations(record),
        f"- Starting weights: {start}{base}",
        f"- Checkpoint: step {step} of run {markdown_code(config.run.name)}",
        *_code(record),
        "",
        *results(record),
        "## Data",
        "",
        *_data(record, config),
    ]


def _conversations(record: Record) -> list[str]:
    """How the noisy streams of answers were made."""
    run = record.chat_run
    if run is None or run is not record.runs[0]:
        return []
    diffusion = run.config.diffusion
    fill = "filled up with end tokens" if diffusion.fill else "not filled up"
    return [
        "- Conversations: answers alone are supervised and masked; blocks are counted from the start of each "
        f"{'answer' if diffusion.blocks == 'answer' else 'conversation'}, the last block of an answer is {fill}"
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
        for source in train_sources(config, stage):
            lines.append(f"- {markdown(stage)}: {_source(source)}")
        lines.append(f"- {markdown(stage)}: fingerprint of data and order {markdown_code(str(fingerprint))}")
    return lines


def _source(source: SourceConfig) -> str:
    manifest = read_manifest(source.prefix)
    where = f"{markdown_code(Path(source.prefix).name)} (weight {source.weight:g})"
    if manifest is None:
        return f"{where}, its manifest was not found"
    chat = ""
    if manifest.chat is not None:
        chat = f"{manifest.chat.answer_tokens:,} of them in answers, "
        chat += f"chat template {markdown_code(manifest.chat.template_hash[:12])}, "
    what = "documents" if manifest.chat is None else "conversations"
    return (
        f"{where}, {manifest.documents:,} {what}, {manifest.tokens:,} tokens, {chat}"
        f"tokenizer {markdown_code(manifest.tokenizer_hash[:12])}, "
        f"fingerprint {markdown_code(manifest.fingerprint[:12])}"
    )
