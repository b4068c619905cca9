"""Wheel and source distribution: what they hold, and that they run outside the checkout."""

import os
import shutil
import site
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IN_BOTH = (
    "sae_posttrain/py.typed",
    "sae_posttrain/measure/report/page.html.jinja",
    "sae_posttrain/lab/files/model/model.safetensors",
    "sae_posttrain/lab/files/model/chat_template.jinja",
    "sae_posttrain/lab/files/sae/block3/sae_weights.safetensors",
    "sae_posttrain/lab/files/texts/train.jsonl.gz",
)

pytestmark = pytest.mark.slow


def run(*command, cwd, environment=None):
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source distribution, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    kept = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "runs")
    shutil.copytree(ROOT, folder / "source", ignore=kept)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, folder / "source", cwd=folder)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """
    A new environment with the wheel in it, and the variables to run it with.

    It finds the libraries where this environment has them, and not the package itself, which stands in the new one.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", built[1], cwd=folder)
    libraries = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    shared = [path for path in sys.path if path.endswith("site-packages") and Path(path).is_dir()]
    (libraries / "shared.pth").write_text("".join(f"{path}\n" for path in {*shared, *site.getsitepackages()}))
    return folder / "bin", {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}


def test_both_hold_what_the_package_needs(built):
    sdist, wheel = built
    in_wheel = zipfile.ZipFile(wheel).namelist()
    with tarfile.open(sdist) as archive:
        in_sdist = [name.split("/", 1)[1] for name in archive.getnames() if "/" in name]
    for names in (in_wheel, in_sdist):
        assert set(IN_BOTH) <= set(names)
        assert any(name.endswith("LICENSE") for name in names)
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sae_posttrain").rglob("*.py")}
    assert modules <= set(in_wheel)
    assert {name.split("/")[0].split("-")[0] for name in in_wheel} == {"sae_posttrain"}
    assert wheel.stat().st_size < 20e6


def test_the_command_and_the_demo_run_outside_the_checkout(installed, tmp_path):
    programs, environment = installed
    where = run(
        programs / "python", "-c", "import sae_posttrain; print(sae_posttrain.__file__)",
        cwd=tmp_path, environment=environment,
    )  # fmt: skip
    assert Path(where.strip()).is_relative_to(programs.parent)
    command = programs / "sae-posttrain"
    assert run(command, "--version", cwd=tmp_path, environment=environment).startswith("sae_posttrain ")
    run(command, "demo", "--quick", "--out", "demo", cwd=tmp_path, environment=environment)
    assert "SASFT (ours)" in (tmp_path / "demo" / "table.txt").read_text(encoding="utf-8")
    assert (tmp_path / "demo" / "report.html").is_file()
