"""Every way to install, in environments of their own that see this one's packages but not its zoominnet."""

import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROBE = (
    "import zoominnet, zoominnet.kernels, zoominnet.kernels.akdp_mask, zoominnet.data, zoominnet.models;"
    "from zoominnet.kernels import akdp_mask;"
    "from zoominnet.kernels.akdp_mask import akdp_mask as same;"
    "assert akdp_mask is same;"
    "print(zoominnet.__version__, zoominnet.__file__)"
)


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """The command's standard output; its whole output in the failure message."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "ZOOMINNET_BUILD": "none", **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked files, so that nothing is built in this tree."""
    copy = tmp_path_factory.mktemp("checkout") / "zoominnet"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in files.decode().split("\0")[:-1]:
        source, target = ROOT / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
        elif source.exists():
            shutil.copyfile(source, target)
    return copy


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with this one's packages except zoominnet."""
    folder = tmp_path_factory.mktemp("base")
    packages = folder / "packages"
    packages.mkdir()
    for entry in Path(site.getsitepackages()[0]).iterdir():
        if "zoominnet" not in entry.name and not entry.name.endswith(".pth"):
            (packages / entry.name).symlink_to(entry)
    return packages


@pytest.fixture
def python(tmp_path: Path, base: Path) -> Path:
    """The interpreter of a fresh environment."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    interpreter = tmp_path / "env" / "bin" / "python"
    purelib = run(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    Path(purelib, "packages.pth").write_text(f"{base}\n")
    return interpreter


def install(python: Path, *arguments: str | Path, cwd: Path) -> None:
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--no-index")
    run(python, "-m", "pip", "install", *options, *arguments, cwd=cwd)


def works(python: Path, *folders: Path) -> None:
    """Imports and the command work from each folder."""
    for folder in folders:
        run(python, "-c", PROBE, cwd=folder)
        assert "usage: zoominnet COMMAND" in run(python, "-m", "zoominnet", "--help", cwd=folder)


@pytest.mark.slow
def test_plain_install(python: Path, checkout: Path, tmp_path: Path) -> None:
    install(python, checkout, cwd=tmp_path)
    works(python, tmp_path, checkout)  # in the checkout, its own files come first: the symlink must serve
    assert "usage:" in run(python.parent / "zoominnet", "--help", cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "strict", "compat"])
def test_editable_install(python: Path, checkout: Path, tmp_path: Path, mode: str) -> None:
    settings = [] if mode == "default" else ["--config-settings", f"editable_mode={mode}"]
    install(python, *settings, "-e", checkout, cwd=tmp_path)
    works(python, tmp_path)


@pytest.mark.slow
def test_checkout_without_installation(python: Path, checkout: Path, tmp_path: Path) -> None:
    works(python, checkout)


@pytest.mark.slow
def test_wheel_contents(python: Path, checkout: Path, tmp_path: Path) -> None:
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--no-index")
    run(python, "-m", "pip", "wheel", *options, "-w", tmp_path / "dist", checkout, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for expected in (
        "zoominnet/__init__.py",
        "zoominnet/py.typed",
        "zoominnet/train.py",
        "zoominnet/data/__main__.py",
        "zoominnet/kernels/__init__.py",
        "zoominnet/kernels/akdp_mask/reference.py",
        "zoominnet/models/shipped/models.json",
        "zoominnet/models/shipped/demo-fa.safetensors",
        *(f"zoominnet/reporting/page.{kind}" for kind in ("html", "css", "js")),
    ):
        assert expected in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [n for n in names if not n.startswith(("zoominnet/", "zoominnet-"))], "strangers at the top level"
    assert len(names) == len(set(names))


@pytest.mark.slow
def test_importing_touches_no_gpu_and_compiles_nothing() -> None:
    code = (
        "import torch, subprocess, sys\n"
        "def refuse(*a, **k): raise AssertionError('CUDA was initialised')\n"
        "torch.cuda._lazy_init = refuse\n"
        "import zoominnet, zoominnet.kernels, zoominnet.models, zoominnet.train, zoominnet.doctor\n"
        "print('fine')"
    )
    assert "fine" in run(sys.executable, "-c", code, cwd=ROOT)


def test_doctor_tells_the_state_of_every_backend(capsys: pytest.CaptureFixture[str]) -> None:
    from zoominnet import doctor
    from zoominnet.kernels import available_backends

    assert doctor.main([]) == 0
    shown = capsys.readouterr().out
    for op, backends in available_backends().items():
        for backend, state in backends.items():
            (row,) = (row for row in doctor.rows() if row[0] == f"{op} / {backend}")
            assert state.startswith(row[1])
            assert row[1] == "ok" or row[2], f"no remedy for {op} / {backend}"
            assert f"{op} / {backend}" in shown
    for what in ("zoominnet", "python", "torch", "torchvision", "cpu"):
        assert what in shown


def test_command_line_names_its_commands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from zoominnet.__main__ import main

    monkeypatch.setattr(sys, "argv", ["zoominnet", "trian"])
    assert main() == 2
    assert "'trian' is not a command" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["zoominnet", "doctor"])
    assert main() == 0


def test_no_package_missing_from_the_declared_dependencies() -> None:
    """What the package imports is declared, or in the standard library."""
    import ast
    import tomllib

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {d.split(">")[0].lower() for d in declared} | {"zoominnet", "triton"}
    modules = {"PIL": "pillow", "yaml": "pyyaml", "safetensors": "safetensors"}
    for file in [*(ROOT / "zoominnet").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            found = []
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found = [node.module or ""]
            for module in (name.split(".")[0] for name in found):
                assert module in sys.stdlib_module_names or modules.get(module, module).lower() in names, (file, module)
