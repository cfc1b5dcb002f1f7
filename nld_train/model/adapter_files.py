"""The files of an adapter, `adapter_config.json` and `adapter_model.safetensors`, in PEFT's format.

Those of a drafter adapter are read by the engine here, by the exported package, and by PEFT itself; those of a LoRA, in
a checkpoint or in a Hugging Face directory, by what continues from it, and in the latter also by `transformers`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from nld_train.config.low_rank import target_shapes
from nld_train.config.schema import LORA_TARGETS, ModelConfig
from nld_train.errors import UserError
from nld_train.files import open_regular
from nld_train.outside_json import brief, is_finite_number, read_object

# Commands that must start fast import this module: torch is imported only where tensors are read or written.
if TYPE_CHECKING:
    from torch import Tensor

DRAFTER_DIRECTORY = "linear_spec_lora"
DRAFTER_TARGETS = ("o_proj",)
LORA_DIRECTORY = "lora"
CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
_READ = ("r", "lora_alpha", "peft_type", "target_modules")
# Settings that do not change what a loaded adapter computes. Any other that is set could: PEFT has a dozen, some of
# which replace weights of the model, and each version adds some.
_WITHOUT_EFFECT = (
    "base_model_name_or_path",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
)
_VALID: dict[str, tuple[Any, ...]] = {"bias": ("none",), "init_lora_weights": (True, False)}
_TYPES = ("F32", "F16", "BF16")


# Prefixes of PEFT's names, of the model's own names and of those of a linear layer in its decoder layer.
_PREFIX = "base_model.model."
MODEL_PREFIX = "encoder."


@dataclass(frozen=True)
class AdapterShape:
    """Rank, scale and targets of a LoRA adapter, the same in every layer.

    `targets` are linear layers under their Hugging Face names, in the order of `LORA_TARGETS`.
    """

    rank: int
    lora_alpha: float
    targets: tuple[str, ...] = DRAFTER_TARGETS

    @property
    def scale(self) -> float:
        """`lora_alpha / rank`, the factor of B A x."""
        return self.lora_alpha / self.rank


def tensor_names(layer: int, target: str = "o_proj", model_prefix: str = MODEL_PREFIX) -> tuple[str, str]:
    """PEFT's names of A and B of a linear layer (docs/method.md, "Exported checkpoint").

    Args:
        layer: its number, from 0.
        target: one of `LORA_TARGETS`.
        model_prefix: of the names of the model that the adapter is for.
    """
    part = "mlp" if target in ("gate_proj", "up_proj", "down_proj") else "self_attn"
    return weight_tensor_names(f"layers.{layer}.{part}.{target}.weight", model_prefix)


def weight_tensor_names(weight: str, model_prefix: str = MODEL_PREFIX) -> tuple[str, str]:
    """The same for a linear layer by the name of its weight, without the model's prefix."""
    at = f"{_PREFIX}{model_prefix}{weight.removesuffix('.weight')}"
    return f"{at}.lora_A.weight", f"{at}.lora_B.weight"


def write_adapter(directory: Path, shape: AdapterShape, tensors: dict[str, Tensor]) -> None:
    """Writes an adapter into a directory, which is created if necessary.

    Args:
        directory: usually `.../linear_spec_lora`.
        shape: rank, lora_alpha and targets.
        tensors: under PEFT's names.
    """
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    alpha = int(shape.lora_alpha) if shape.lora_alpha == int(shape.lora_alpha) else shape.lora_alpha
    config = {
        "peft_type": "LORA",
        # With a task type, PEFT requires methods of `transformers`' generation that the exported model does not have.
        "task_type": None,
        "base_model_name_or_path": None,
        "r": shape.rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": list(shape.targets),
        "bias": "none",
        "inference_mode": True,
    }
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, directory / TENSOR_FILE, {"format": "pt"}
    )


def find_adapter(path: Path) -> Path | None:
    """The directory of the drafter adapter at a path, `linear_spec_lora` in it or the path itself; None without one.

    An adapter beside the `config.json` of a model is a LoRA for all that the model does.
    """
    own = () if (path / "config.json").is_file() else (path,)
    return next((folder for folder in (path / DRAFTER_DIRECTORY, *own) if (folder / CONFIG_FILE).is_file()), None)


def require_adapter(path: Path) -> Path:
    """What `find_adapter` finds.

    Raises:
        UserError: there is no adapter.
    """
    found = find_adapter(path)
    if found is None:
        raise UserError(f"{path}: holds no drafter adapter ({CONFIG_FILE} and {TENSOR_FILE})")
    return found


def resolve_adapter(directory: Path, model: ModelConfig, given: Path | None = None) -> Path | None:
    """The directory of the adapter to use with a model, checked against it.

    Args:
        directory: of a checkpoint or an export, whose `linear_spec_lora/` is used if there is one.
        model: shapes of the checkpoint's model.
        given: an adapter's directory, or one with `linear_spec_lora/` in it, to use instead.

    Returns:
        None if no adapter is given and the checkpoint has none.

    Raises:
        UserError: `given` has no adapter, or what `read_shape` refuses.
    """
    path = directory / DRAFTER_DIRECTORY if given is None else given
    if given is None and not path.is_dir():
        return None
    found = require_adapter(path)
    read_shape(found, model)
    return found


def copy_adapter(adapter: Path, destination: Path) -> None:
    """Copies an adapter's two files into a new `linear_spec_lora/` of a directory.

    Raises:
        UserError: a tensor contains NaN or infinity.
    """
    read_tensors(adapter)
    (destination / DRAFTER_DIRECTORY).mkdir()
    for name in (CONFIG_FILE, TENSOR_FILE):
        shutil.copyfile(adapter / name, destination / DRAFTER_DIRECTORY / name)


def read_shape(
    directory: Path, model: ModelConfig, drafter: bool = True, model_prefix: str = MODEL_PREFIX
) -> AdapterShape:
    """Rank, lora_alpha and targets of an adapter, after comparing every tensor's shape with a model; reads no tensor.

    Args:
        directory: with its two files.
        model: shapes of the model.
        drafter: whether it must be one on `o_proj` alone, as a drafter adapter is.
        model_prefix: of the names of the model that the adapter is for.

    Raises:
        UserError: it is damaged, another kind of adapter, or made for a model of another shape.
    """
    config = _read_config(directory / CONFIG_FILE, DRAFTER_TARGETS if drafter else LORA_TARGETS)
    targets = tuple(target for target in LORA_TARGETS if target in config["target_modules"])
    shape = AdapterShape(config["r"], config["lora_alpha"], targets)
    found, sizes = _shapes(directory / TENSOR_FILE), target_shapes(model)
    expected: dict[str, list[int]] = {}
    # One layer more than the file can have is enough to find what is missing.
    for layer in range(min(model.num_hidden_layers, len(found) + 1)):
        for target in targets:
            (down, up), (inputs, outputs) = tensor_names(layer, target, model_prefix), sizes[target]
            expected |= {down: [shape.rank, inputs], up: [outputs, shape.rank]}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise UserError(
                f"{directory}: the adapter does not fit this model: {name} has shape {found.get(name, 'none')}, and "
                f"the model with rank {shape.rank} ({CONFIG_FILE}) needs {expected.get(name, 'none')}"
            )
    return shape


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """The tensors of an adapter that `read_shape` has accepted, on the CPU.

    Raises:
        UserError: a tensor contains NaN or infinity.
    """
    from safetensors.torch import load_file

    from nld_train.model.finite import first_non_finite

    tensors = load_file(directory / TENSOR_FILE)
    if (bad := first_non_finite(tensors.items())) is not None:
        raise UserError(f"{directory / TENSOR_FILE}: tensor {bad} contains NaN or infinity; name another adapter")
    return tensors


def _read_config(path: Path, allowed: Sequence[str]) -> dict[str, Any]:
    config = read_object(path)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise UserError(f"{path}: r is missing or not an integer of 1 or more")
    if not is_finite_number(alpha):
        raise UserError(f"{path}: lora_alpha is missing or not a finite number")
    targets = config.get("target_modules")
    targets = config["target_modules"] = [targets] if isinstance(targets, str) else targets
    known = isinstance(targets, list) and targets and all(target in allowed for target in targets)
    if config.get("peft_type") != "LORA" or not known:
        drafter = tuple(allowed) == DRAFTER_TARGETS
        valid = "o_proj alone, which a drafter adapter must be" if drafter else f"some of {', '.join(allowed)}"
        raise UserError(f"{path}: not a LoRA on {valid}")
    for name, value in config.items():
        if name not in (*_READ, *_WITHOUT_EFFECT) and value and value not in _VALID.get(name, ()):
            raise UserError(f"{path}: {name} is set to {brief(value)}, which is not supported here")
    return config


def _shapes(path: Path) -> dict[str, list[int]]:
    try:
        open_regular(path).close()
        with safe_open(path, framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            for name, found in slices.items():
                if found.get_dtype() not in _TYPES:
                    raise UserError(f"{path}: {name} has type {found.get_dtype()}; supported: {', '.join(_TYPES)}")
            return {name: list(found.get_shape()) for name, found in slices.items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
