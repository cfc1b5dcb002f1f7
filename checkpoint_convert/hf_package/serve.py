"""`transformers serve` for the model in whose directory this file is: `python serve.py --help`.

`transformers serve` looks the class of a model up among its own, and does not find that of this one. Here it does, and
passes pictures on to one that sees. All its options are options of this command; `--decoding-mode` is one more.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODES = ("ar", "diffusion", "linear", "quadratic")
# Characters of a message, which may quote a picture.
_LONGEST = 200


def main(words: list[str] | None = None) -> None:
    """Serves the model until it is interrupted.

    Args:
        words: the command line; None for that of the process.
    """
    directory = Path(__file__).absolute().parent
    parser = argparse.ArgumentParser(
        prog="serve.py",
        description="Serve this model with `transformers serve`; other options are passed on to it, such as --port.",
    )
    parser.add_argument(
        "--decoding-mode", choices=MODES, help="of requests that name none (default: that of generation_config.json)"
    )
    parser.add_argument("--continuous-batching", action="store_true", help="refused")
    options, others = parser.parse_known_args(words)
    if options.continuous_batching:
        parser.error("--continuous-batching: this model has no paged attention; requests are decoded one after another")
    # The modules of the export are part of a package, and must not hide others.
    sys.path[:] = [path for path in sys.path if Path(path or ".").absolute() != directory]
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        parser.error("openai, fastapi or uvicorn is not installed: pip install 'transformers[serving]'")
    from transformers import PretrainedConfig

    config, _ = PretrainedConfig.get_config_dict(directory)
    if "vision_config" in config:
        if not has_torchvision():
            parser.error(
                "torchvision, which the processor of pictures needs, does not load: install that of your torch"
            )
        # Before the server is imported: importing a processor replaces the module `transformers`.
        take_pictures(config)
    import transformers
    from transformers.cli.transformers import app

    setattr(transformers, config["architectures"][0], loader(options.decoding_mode))
    print(f"model {directory}", flush=True)
    app(["serve", str(directory), "--trust-remote-code", *others])


def has_torchvision() -> bool:
    """Whether torchvision is installed and loads, which one that was built for another torch does not."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def take_pictures(config: dict[str, Any]) -> None:
    """Tells `transformers serve` that the model of a `config.json` takes pictures."""
    from transformers import PixtralProcessor
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    PixtralProcessor.apply_chat_template = reading(PixtralProcessor.apply_chat_template)
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[config["model_type"]] = config["architectures"][0]


def loader(mode: str | None) -> type:
    """What `transformers serve` takes for the class: it loads the model with the code beside its weights.

    Args:
        mode: that of requests that name none; None for that of the model's generation config.
    """

    class Loader:
        @staticmethod
        def from_pretrained(*arguments: Any, **settings: Any) -> Any:
            from transformers import AutoModelForCausalLM

            model = AutoModelForCausalLM.from_pretrained(*arguments, **settings)
            if mode is not None:
                model.generation_config.decoding_mode = mode
            model.generate = refusing(model.generate)
            return model

    return Loader


def refusing(generate: Callable[..., Any]) -> Callable[..., Any]:
    """`generate`, whose refusals are errors of the request (400), with its message, and not of the server."""

    def refused(*arguments: Any, **settings: Any) -> Any:
        from fastapi import HTTPException

        # The server passes a processor of pictures on, which has no vocabulary for stop strings.
        if (tokenizer := getattr(settings.get("tokenizer"), "tokenizer", None)) is not None:
            settings["tokenizer"] = tokenizer
        try:
            return generate(*arguments, **settings)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error

    return refused


def reading(apply_chat_template: Callable[..., Any]) -> Callable[..., Any]:
    """A processor's method, for which a picture that cannot be read is an error of the request (400)."""

    def read(*arguments: Any, **settings: Any) -> Any:
        from fastapi import HTTPException

        try:
            return apply_chat_template(*arguments, **settings)
        except (ValueError, RuntimeError, OSError) as error:
            reason = str(error).partition("\n")[0][:_LONGEST]
            raise HTTPException(400, f"messages: cannot be read with their pictures: {reason}") from error

    return read


if __name__ == "__main__":
    main()
