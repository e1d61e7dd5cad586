"""What is built from the checkout: it holds everything, and starts where nothing else is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from agemem_mcp._version import __version__

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "agemem_mcp": ROOT / "src" / "agemem_mcp",
    "agemem_policies": ROOT / "policies" / "agemem_policies",
    "agemem_training": ROOT / "training" / "agemem_training",
}


def run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command without settings or import paths of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AGEMEM_", "PYTHON"))}
    return subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, check=False)


def build(source: Path, folder: Path) -> Path:
    """Build a wheel from a folder or an sdist; a skip where the build's own tools cannot be had."""
    built = run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(source))
    if built.returncode != 0 and "hatchling" in built.stderr and "No matching distribution" in built.stderr:
        pytest.skip("hatchling is neither installed nor to be had from a package index")
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built from, since building leaves files behind."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    for name in ("src", "policies", "training"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(checkout, tmp_path_factory.mktemp("wheel"))


def expected_files() -> set[str]:
    """Every file of the three packages, as it is named in a wheel."""
    return {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_every_file_of_the_three_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert [name for name in names if name.startswith("agemem_mcp/prompts/") and name.endswith(".txt")]
    assert expected_files() <= names
    assert {name.split("/")[0] for name in names} == {*PACKAGES, f"agemem_mcp-{__version__}.dist-info"}


def test_the_wheel_installs_and_tells_its_version_without_any_dependency(wheel: Path, tmp_path: Path) -> None:
    made = run(sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv"))
    assert made.returncode == 0, made.stderr
    binaries = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    installed = run(
        *(sys.executable, "-m", "pip", "--python", str(binaries / "python")),
        *("install", "--quiet", "--no-deps", "--no-index", str(wheel)),
    )
    assert installed.returncode == 0, installed.stderr
    told = run(str(binaries / "agemem-mcp"), "--version", cwd=tmp_path)
    assert (told.stdout, told.stderr) == (f"agemem-mcp {__version__}\n", "")


def test_a_wheel_built_from_the_sdist_holds_the_same_files(wheel: Path, checkout: Path, tmp_path: Path) -> None:
    tools = run(sys.executable, "-m", "venv", str(tmp_path / "tools"))
    assert tools.returncode == 0, tools.stderr
    python = str(tmp_path / "tools" / ("Scripts" if os.name == "nt" else "bin") / "python")
    got = run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "hatchling")
    if got.returncode != 0:
        pytest.skip(f"hatchling is not to be had from a package index: {got.stderr.strip().splitlines()[-1]}")
    built = run(python, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path), cwd=checkout)
    assert built.returncode == 0, built.stderr
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"pyproject.toml", "README.md", "LICENSE", "src/agemem_mcp/py.typed"} <= names
    (tmp_path / "again").mkdir()
    again = build(sdist, tmp_path / "again")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())


def test_the_warm_start_that_every_installation_carries_weighs_at_most_four_megabytes() -> None:
    files = [one for one in (PACKAGES["agemem_training"] / "data" / "mini").iterdir() if one.is_file()]
    assert "model.safetensors" in {one.name for one in files}
    assert sum(one.stat().st_size for one in files) <= 4_000_000
