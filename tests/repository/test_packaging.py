"""The pinned environment, the wheel, and what starts from them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import pytest
from documented_commands import ROOT, copy_checkout
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


FILES = ("constraints.txt", "constraints-py312.txt")
OF_THIS_PYTHON = FILES[sys.version_info >= (3, 12)]


def _pins(file: str = OF_THIS_PYTHON) -> dict[str, str]:
    """Version of each package that a file of constraints has."""
    pins: dict[str, str] = {}
    for line in (ROOT / file).read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pin = Requirement(line)
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"{line}: not an exact version"
        assert pin.marker is None, line
        assert canonicalize_name(pin.name) not in pins, line
        pins[canonicalize_name(pin.name)] = str(pin.specifier).removeprefix("==")
    return pins


def _needed(requirements: list[str], extras: tuple[str, ...]) -> set[str]:
    """Names of all packages that some requirements need here, direct and indirect."""
    found: set[tuple[str, tuple[str, ...]]] = set()
    waiting = [(requirement, extras) for requirement in requirements]
    while waiting:
        text, active = waiting.pop()
        requirement = Requirement(text)
        environments = [{"extra": extra} for extra in ("", *active)]
        if requirement.marker is not None and not any(map(requirement.marker.evaluate, environments)):
            continue
        key = (canonicalize_name(requirement.name), tuple(sorted(requirement.extras)))
        if key not in found:
            found.add(key)
            waiting += [(child, key[1]) for child in distribution(key[0]).requires or ()]
    return {name for name, _ in found}


def test_everything_that_is_needed_is_pinned() -> None:
    requirements = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    try:
        needed = _needed(requirements, ())
    except PackageNotFoundError as error:
        pytest.fail(f"{error} is not installed here: make environment")
    cuda = re.compile(r"^(nvidia|cuda)-|^triton$")  # of torch's CUDA build, which pins them itself
    assert {name for name in needed if not cuda.match(name)} <= set(_pins())


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("extra", PROJECT["optional-dependencies"])
def test_what_an_extra_asks_for_is_pinned(extra: str, file: str) -> None:
    """Also of those that are not installed here."""
    asked = {canonicalize_name(Requirement(line).name) for line in PROJECT["optional-dependencies"][extra]}
    assert asked <= set(_pins(file))


@pytest.mark.parametrize("file", FILES)
def test_parts_of_transformer_engine_have_one_version(file: str) -> None:
    """Its wheels are built for each other; which of the two for CUDA is taken depends on the machine."""
    parts = {name: version for name, version in _pins(file).items() if name.startswith("transformer-engine")}
    assert parts.keys() == {f"transformer-engine{part}" for part in ("", "-torch", "-cu12", "-cu13")}
    assert len(set(parts.values())) == 1


def test_pins_are_what_is_installed() -> None:
    pins = _pins()
    installed = {
        name: distribution(name).version.partition("+")[0] for name in ("torch", "megatron-core", "transformers")
    }
    assert installed == {name: pins[name] for name in installed}


def test_apex_is_no_dependency() -> None:
    """The package of that name on the public index is another project's."""
    extras = [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    listed = [*PROJECT["dependencies"], *extras, *_pins()]
    assert "apex" not in {canonicalize_name(Requirement(line).name) for line in listed}


def test_both_lines_of_megatron_are_pinned() -> None:
    first, second = map(_pins, FILES)
    assert (first["megatron-core"], second["megatron-core"]) == ("0.16.1", "0.19.2")
    # Direct dependencies are in both; what they need in turn may differ.
    direct = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert direct <= first.keys() & second.keys()


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
def test_make_takes_the_versions_of_its_python(tmp_path: Path) -> None:
    """A stand-in for Python answers as its version would."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 12, 1); $2"\n')
    python.chmod(0o755)
    for interpreter, file in ((str(python), FILES[1]), (sys.executable, OF_THIS_PYTHON)):
        words = ["make", "--dry-run", "environment", f"PYTHON={interpreter}", f"VENV={tmp_path / 'new'}"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
        assert f"--constraint {file} --editable" in done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = copy_checkout(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(source)]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.long
def test_wheel_holds_every_setting_and_module(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("configs", "launch"):
        for path in (ROOT / folder).rglob("*.*"):
            if "__pycache__" not in path.parts:
                assert f"nld_train/{path.relative_to(ROOT)}" in names
    for package in ("nld_train", "checkpoint_convert"):
        for path in (ROOT / package).rglob("*.*"):
            if "__pycache__" not in path.parts:
                assert str(path.relative_to(ROOT)) in names
    assert not [name for name in names if name.startswith(("tests", "configs", "launch", "docs", "benchmarks"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as pip installs it, apart from this checkout."""
    site = tmp_path_factory.mktemp("site")
    words = ["install", "--quiet", "--no-deps", "--no-compile", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, timeout=300, capture_output=True)
    return site


def _outside(site: Path, folder: Path, *words: str) -> str:
    """What a command prints that sees the installed package, in another folder."""
    done = subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.long
def test_every_command_is_installed(installed: Path, tmp_path: Path) -> None:
    """Each is there and shows its help; the plan of a run finds its settings, and the launch scripts are copied."""
    folder = tmp_path / "folder"
    folder.mkdir()
    assert {path.name for path in (installed / "bin").glob("nld-*")} == set(PROJECT["scripts"])
    for name in PROJECT["scripts"]:
        assert name in _outside(installed, folder, sys.executable, str(installed / "bin" / name), "--help")
    found = _outside(installed, folder, sys.executable, "-c", "import nld_train; print(nld_train.__file__)")
    assert Path(found.strip()).is_relative_to(installed)
    plan = _outside(installed, folder, sys.executable, "-m", "nld_train.train", "experiment=paper_8b", "run.dry=true")
    assert "paper_8b" in plan
    assert list(folder.iterdir()) == []
    _outside(installed, folder, sys.executable, str(installed / "bin" / "nld-launch"), ".")
    assert os.access(folder / "launch/torchrun.sh", os.X_OK)
    copied = {path.relative_to(folder / "launch"): path.read_bytes() for path in (folder / "launch").rglob("*.*")}
    for path in (ROOT / "launch").glob("*.*"):
        assert copied[path.relative_to(ROOT / "launch")] == path.read_bytes()


# Every part that reads files of the package: settings, the chat template, the code of an export, the parts of the page.
_WORK = """
import sys
from nld_train.commands import data, decode, report, train
from checkpoint_convert import cli

text = " ".join(f"{number} times seven is {7 * number}." for number in range(3000))
open("text.txt", "w").write(text)
prepare = ["--out", "data", "--name", "own", "--tokenizer", "bytes", "--workers", "1"]
assert data.main(["prepare", "text.txt", *prepare]) == 0
sets = "[{prefix: data/own, weight: 1}]"
settings = ["run.dir=run", f"data.train={sets}", f"data.validation={sets}", "data.tokenizer=data/tokenizer"]
settings += ["stages.ar.tokens=256", "stages.joint.tokens=256", "batch.global_size=4", "batch.micro_size=2"]
settings += ["batch.sequence_length=64", "logging.wandb.mode=disabled", "execution.device=cpu", "data.workers=0"]
settings += ["validation.every=0", "validation.samples=4", "evaluation.every=0"]
assert train.main(settings) == 0
assert cli.main(["export", "run", "export", "--format", "nld"]) == 0
for source in ("run", "export"):
    assert decode.main([source, "--mode", "linear", "--prompt", "7 times", "--max-new-tokens", "4"]) == 0
assert "plotly" not in sys.argv or report.main(["run", "--prompt", "7 times", "--max-new-tokens", "4"]) == 0
"""


@pytest.mark.long
def test_the_installed_package_works_in_another_folder(installed: Path, tmp_path: Path) -> None:
    plotly = ["plotly"] if find_spec("plotly") else []
    _outside(installed, tmp_path, sys.executable, "-c", _WORK, *plotly)
    assert (tmp_path / "run/report.png").is_file()
    assert (tmp_path / "run/report.html").is_file() == bool(plotly)
    assert list((tmp_path / "export").glob("modeling_*.py"))
