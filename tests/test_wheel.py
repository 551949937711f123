"""The wheel holds what the tree holds: every package of the layers, the demo's files, nothing
else.
"""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from onnx_opt.passes._core import toml

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("passes", "runtime", "frontends", "tools")
NOT_INSTALLED = Path("tools/dev")


def package_folders() -> set[Path]:
    """Folders of the layers that hold Python files, relative to the root."""
    folders = {
        file.parent.relative_to(ROOT)
        for layer in LAYERS
        for file in (ROOT / layer).rglob("*.py")
    }
    return {folder for folder in folders if not folder.is_relative_to(NOT_INSTALLED)}


def setuptools_table() -> dict:
    return toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "setuptools"
    ]


def dotted(folder: Path) -> str:
    return ".".join(("onnx_opt", *folder.parts))


def test_every_package_folder_is_listed():
    expected = {"onnx_opt": "."} | {
        dotted(folder): folder.as_posix() for folder in package_folders()
    }
    table = setuptools_table()
    assert table["package-dir"] == expected
    assert sorted(table["packages"]) == sorted(expected)


def test_every_package_folder_has_an_init():
    assert [
        f.as_posix()
        for f in sorted(package_folders())
        if not (ROOT / f / "__init__.py").is_file()
    ] == []


def expected_files() -> set[str]:
    """Names inside the wheel, without its metadata."""
    files = {ROOT / "__init__.py", ROOT / "__main__.py"}
    files |= {
        file for folder in package_folders() for file in (ROOT / folder).glob("*.py")
    }
    for package, patterns in setuptools_table()["package-data"].items():
        folder = ROOT.joinpath(*package.split(".")[1:])
        found = {file for pattern in patterns for file in folder.glob(pattern)}
        files |= {file for file in found if file.is_file()}
    return {f"onnx_opt/{file.relative_to(ROOT).as_posix()}" for file in files}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built without network from a copy of the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns(
        ".*", "build", "dist", "*.egg-info", "__pycache__"
    )
    shutil.copytree(ROOT, folder / "tree", ignore=left_out)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--disable-pip-version-check",
        "--wheel-dir",
        str(folder),
        str(folder / "tree"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.slow
def test_the_wheel_holds_exactly_the_tree(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected_files()


@pytest.mark.slow
def test_the_wheel_carries_its_licence_and_entry_point(wheel):
    with zipfile.ZipFile(wheel) as archive:
        metadata = {
            name.split(".dist-info/")[1]: archive.read(name).decode()
            for name in archive.namelist()
            if ".dist-info/" in name
        }
    assert metadata["licenses/LICENSE"] == (ROOT / "LICENSE").read_text(
        encoding="utf-8"
    )
    assert "onnx-opt = onnx_opt.tools.cli:main" in metadata["entry_points.txt"]
    requirements = [
        line
        for line in metadata["METADATA"].splitlines()
        if line.startswith("Requires-Dist")
    ]
    always = {
        line.split()[1].partition(">")[0]
        for line in requirements
        if "extra ==" not in line
    }
    assert always == {
        "onnx",
        "onnx_ir",
        "onnxruntime",
        "numpy",
        "psutil",
        "threadpoolctl",
        # of Python 3.10 only
        "tomli",
        "click",
        "rich",
        "platformdirs",
        "scipy",
    }


@pytest.mark.slow
def test_the_unpacked_wheel_runs(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = "import onnx_opt, onnx_opt.tools.cli; print(onnx_opt.__file__, onnx_opt.__version__)"
    environment = {"PYTHONPATH": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    file, version = done.stdout.split()
    assert Path(file).resolve() == (tmp_path / "onnx_opt" / "__init__.py").resolve()
    assert f"-{version}-" in wheel.name
