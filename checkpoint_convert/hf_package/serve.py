"""`transformers serve` for the model in whose directory this file is: `python serve.py --help`.

`transformers serve` looks the class of a model up among its own, and does not find that of this one. Here it does. All
its options are options of this command; `--decoding-mode` is one more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ARCHITECTURE = "NemotronLabsDiffusionModel"
MODES = ("ar", "diffusion", "linear", "quadratic")


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
    import transformers
    from transformers.cli.transformers import app

    setattr(transformers, ARCHITECTURE, loader(options.decoding_mode))
    print(f"model {directory}", flush=True)
    app(["serve", str(directory), "--trust-remote-code", *others])


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

        try:
            return generate(*arguments, **settings)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error

    return refused


if __name__ == "__main__":
    main()
