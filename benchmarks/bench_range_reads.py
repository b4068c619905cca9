"""
Two features of a published SAE of 32768 x 2048 float32 (537 MB) over HTTP: bytes fetched, requests, time and memory.

A local server has the Hub's layout (`tests/saes/hub_server.py`) and counts what it sends. Each load is a fresh process
that finds the server by `HF_ENDPOINT`. The loads of one format share a cache. The times do not include a network.

    python benchmarks/bench_range_reads.py

Linux only (it resets and reads the kernel's high-water mark). Writes 1.1 GB of temporary files.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

NUM_FEATURES, WIDTH = 32768, 2048
TWO, MORE = [17, 32000], [17, 32000, 9000]
BLOCK = 20
RESULTS = Path(__file__).parent / "results" / "bench_range_reads.json"
REPOSITORIES = {"qwen_scope": "owner/SAE-Res-Test-W32K-L0_50", "saelens": "owner/saelens"}
LOADS: dict[str, dict[str, Any]] = {
    "two_features": {"features": TWO},
    "two_features_again": {"features": TWO},
    "with_directions": {"features": TWO, "directions": True},
    "with_directions_again": {"features": TWO, "directions": True},
    "one_more_feature": {"features": MORE},
    "one_more_with_directions": {"features": MORE, "directions": True},
    "all_again_offline": {"features": MORE, "directions": True},
}
"""In this order, on one cache."""


def memory(field: str) -> int:
    """A line of `/proc/self/status`, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measure(repository: str, load: str) -> dict[str, float]:
    """Run one load in this process."""
    import huggingface_hub  # noqa: F401  (imports are not measured)
    import torch  # noqa: F401

    from sae_posttrain.saes import load_sae

    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = memory("VmRSS")
    start = time.perf_counter()
    held = load_sae(repository, block=BLOCK, **LOADS[load])
    seconds = time.perf_counter() - start
    peak = memory("VmHWM") - before
    del held
    return {"seconds": seconds, "peak_bytes": peak}


def write_files(folder: Path) -> dict[str, int]:
    """One file of each format with random weights, in folders named after the formats; their sizes."""
    import torch
    from safetensors.torch import save_file

    F, D = NUM_FEATURES, WIDTH
    for format in REPOSITORIES:
        (folder / format).mkdir()
    weights = {
        "W_enc": torch.randn(F, D),
        "W_dec": torch.randn(D, F),
        "b_enc": torch.randn(F),
        "b_dec": torch.randn(D),
    }
    torch.save(weights, folder / f"qwen_scope/layer{BLOCK}.sae.pt")
    turned = {"W_enc": weights.pop("W_enc").view(D, F), "W_dec": weights.pop("W_dec").view(F, D)}
    save_file({**weights, **turned}, folder / "saelens/sae_weights.safetensors")
    hook = f"blocks.{BLOCK}.hook_resid_post"
    config = {"architecture": "standard", "d_in": D, "d_sae": F, "metadata": {"hook_name": hook}}
    (folder / "saelens/cfg.json").write_text(json.dumps(config))
    return {format: sum(file.stat().st_size for file in (folder / format).iterdir()) for format in REPOSITORIES}


def load_hub_server() -> ModuleType:
    path = Path(__file__).parents[1] / "tests" / "saes" / "hub_server.py"
    spec = importlib.util.spec_from_file_location("hub_server", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hub_server"] = module
    spec.loader.exec_module(module)
    return module


def run(server: Any, format: str, load: str, home: Path) -> dict[str, float]:
    """One load in a fresh process, and what the server sent for it."""
    server.forget()
    environment = os.environ | {
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(home),
        "NO_PROXY": "127.0.0.1,localhost",
    }
    if load.endswith("offline"):
        environment["HF_HUB_OFFLINE"] = "1"
    command = [sys.executable, __file__, "--measure", REPOSITORIES[format], load]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    sent = server.content_requests()
    return {
        "content_bytes": sum(request.num_bytes for request in sent),
        "content_requests": len(sent),
        "all_requests": len(server.requests),
        "kept_bytes": sum(file.stat().st_size for file in home.rglob("*") if file.is_file()),
        **json.loads(output),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs=2, metavar=("REPOSITORY", "LOAD"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return

    from machine import hardware, versions

    busy = os.getloadavg()[0]
    server = load_hub_server().HubServer()
    results: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        file_bytes = write_files(Path(temporary))
        for format, repository in REPOSITORIES.items():
            server.push(repository, Path(temporary) / format)
            home = Path(temporary) / f"home_{format}"
            results[format] = {load: run(server, format, load, home) for load in LOADS}
    server.close()

    report = {
        "question": "Two features of a published SAE over HTTP: bytes fetched, requests, time and memory.",
        "file": {"num_features": NUM_FEATURES, "width": WIDTH, "dtype": "float32", "bytes": file_bytes},
        "loads": LOADS,
        "hardware": hardware() | {"load_average_before": busy},
        "versions": versions("torch", "huggingface_hub"),
        "results": results,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")

    print(
        f"{'format':12} {'load':26} {'bytes fetched':>14} {'of file':>8} {'requests':>8} {'seconds':>8} {'peak MB':>8}"
    )
    for format, loads in results.items():
        for load, took in loads.items():
            part = took["content_bytes"] / file_bytes[format]
            print(
                f"{format:12} {load:26} {took['content_bytes']:14,.0f} {part:8.3%} {took['content_requests']:8.0f} "
                f"{took['seconds']:8.2f} {took['peak_bytes'] / 1e6:8.1f}"
            )


if __name__ == "__main__":
    main()
