"""What an installation carries, and that the three ways to install say the same."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PEERS = {"vllm", "nanovllm_reference"}
"""Engines that benchmarks measure where somebody has installed them."""
NAMES = {"sklearn": "scikit-learn", "pynvml": "nvidia-ml-py"}
"""Imports named unlike their distribution, of packages that need not be installed here."""
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def pins(python: str = "") -> dict[str, str]:
    """The pinned version by package name, for one Python version or (with markers ignored) all of them."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        environment = {"python_version": python, "python_full_version": f"{python}.0"}
        if python and requirement.marker and not requirement.marker.evaluate(environment):
            continue
        name = canonicalize_name(requirement.name)
        if python:
            assert name not in found, f"{name} is pinned twice for Python {python}"
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", line
        found[name] = specifier.version
    return found


def requirements(python: str) -> list[Requirement]:
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "extra": "",
    }
    every = [Requirement(line) for group in lists for line in group]
    return [item for item in every if item.marker is None or item.marker.evaluate(environment)]


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_pin_every_dependency_within_its_range(python):
    pinned = pins(python)
    for requirement in requirements(python):
        name = canonicalize_name(requirement.name)
        # flash-attn is built against the torch that is there, and this project is its own requirement in extras.
        if name in ("flash-attn", PROJECT["name"]):
            continue
        assert name in pinned, f"{name} is not pinned for Python {python}"
        assert requirement.specifier.contains(pinned[name]), f"{requirement} excludes {pinned[name]}"


def test_the_tested_set_is_the_one_that_was_agreed():
    assert pins()["torch"] == "2.13.0"
    assert pins()["nbval"] == "0.11.0"
    assert "ipykernel" in pins()


def test_no_pin_forces_a_cuda_build_on_machines_without_a_gpu():
    assert not [name for name in pins() if re.match(r"(nvidia-(?!ml-py)|cuda-)", name)]


@pytest.mark.parametrize("python", PYTHONS)
def test_this_torch_accepts_the_pinned_triton(python):
    """torch 2.13.0 for Linux on PyPI requires exactly triton 3.7.1; another pin makes pip give up there."""
    assert pins(python)["triton"] == "3.7.1"


def test_conda_says_what_pyproject_says():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, last = environment["dependencies"]
    python = next(Requirement(line) for line in conda if line.startswith("python"))
    assert python.specifier == SpecifierSet(PROJECT["requires-python"])
    assert "pip" in conda
    assert last == {"pip": ["-c constraints.txt", "-e .[course]"]}
    assert "course" in PROJECT["optional-dependencies"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel that `pip install .` makes, built without an index."""
    out = tmp_path_factory.mktemp("wheel")
    code = "import hatchling.build, sys; print(hatchling.build.build_wheel(sys.argv[1]))"
    built = subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_the_wheel_carries_the_embedded_model(wheel):
    shipped = {path.name for path in (ROOT / "nanovllm" / "embedded_model").iterdir() if path.is_file()}
    inside = {name.rpartition("/")[2] for name in wheel.namelist() if name.startswith("nanovllm/embedded_model/")}
    assert inside == shipped
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= inside
    weights = wheel.getinfo("nanovllm/embedded_model/model.safetensors")
    assert weights.file_size <= 10 * 2**20


def test_the_wheel_carries_the_three_packages_and_nothing_else(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"nanovllm", "hnsw", "course", f"nanovllm_course-{PROJECT['version']}.dist-info"}
    assert not [name for name in wheel.namelist() if "__pycache__" in name or name.endswith(".ipynb")]


def test_the_wheel_names_every_extra(wheel):
    metadata = wheel.read(f"nanovllm_course-{PROJECT['version']}.dist-info/METADATA").decode()
    for extra in PROJECT["optional-dependencies"]:
        assert f"Provides-Extra: {extra}\n" in metadata


def imported_by(path: Path) -> set[str]:
    """Top-level names of what a Python file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def declared(*extras: str) -> set[str]:
    """Distributions that the project requires with these extras, their own extras of this project included."""
    found: set[str] = set()
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    for requirement in (Requirement(line) for group in lists for line in group):
        if requirement.name == PROJECT["name"]:
            found |= declared(*requirement.extras)
        found.add(canonicalize_name(requirement.name))
    return found


@pytest.mark.parametrize(
    ("folders", "extras"),
    [
        (["nanovllm", "hnsw"], ["gpu", "flash", "course"]),
        (["course", "test-case", "training"], ["course", "test", "gpu", "peers"]),
        (["tests", "notebooks", "benchmarks", "scripts"], ["test", "peers", "bench", "gpu", "flash"]),
    ],
    ids=["library", "course", "tests"],
)
def test_every_import_is_declared(folders, extras):
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    helpers = {
        path.stem
        for folder in ("tests", "training", "benchmarks", "test-case")
        for path in (ROOT / folder).rglob("*.py")
    }
    ours = helpers | {"nanovllm", "hnsw", "course", "benchmarks", "training"}
    allowed = declared(*extras)
    homes = packages_distributions()
    missing = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imported_by(path) - ours - sys.stdlib_module_names
        if name not in PEERS
        and not {canonicalize_name(home) for home in homes.get(name, [NAMES.get(name, name)])} & allowed
    }
    assert not missing


def test_every_command_of_the_makefile_is_explained():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE).group(1).split())
    explained = set(re.findall(r"^\t@echo 'make ([a-z-]+)", makefile, re.MULTILINE))
    assert targets - explained == {"help", "install-test", "chromium"}
    assert {f"{target}:" for target in targets} <= set(re.findall(r"^[a-z-]+:", makefile, re.MULTILINE))
