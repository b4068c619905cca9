"""Environments of other versions of TRL and transformers, made with pip from the package index."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_FLOOR = ("transformers==5.10.1", "peft==0.20.0", "accelerate==1.12.0", "datasets==4.7.0")
_NEWEST = ("transformers", "peft", "accelerate", "datasets")
PINS: dict[str, tuple[str, ...]] = {
    "trl-1.15-floor": ("trl==1.15.0", "triton", *_FLOOR),
    "trl-1.15-newest": ("trl==1.15.0", "triton", *_NEWEST),
    "trl-1.16-floor": ("trl==1.16.0", *_FLOOR),
    "newest": ("trl", *_NEWEST),
}
"""Requirements of each environment. TRL 1.15 runs a Triton kernel, on a CPU in Triton's interpreter."""


def environments(folder: Path) -> list[str]:
    """Make those that are not there yet, in `folder`; the interpreter of each."""
    pythons = []
    for name, pins in PINS.items():
        python = folder / name / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), "torch"], check=True)
            subprocess.run([*pip, "-e", f"{ROOT}[dev]", *pins], check=True)
        pythons.append(str(python))
    return pythons
