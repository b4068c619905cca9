"""
Engines of vLLM: `make slow-vllm`.

They serve the model that `SAE_POSTTRAIN_HELP` names, on a CPU. Each engine has a process of its own.
"""

import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import requests
import torch

from sae_posttrain import FeatureSet
from sae_posttrain.serving.engine import server_command
from sae_posttrain.serving.row_settings import RowSettings
from sae_posttrain.serving.steered_client import SteeredClient

pytestmark = [pytest.mark.slow_vllm, pytest.mark.filterwarnings("ignore")]  # vLLM warns of itself as it is imported
EQUALITY = Path(__file__).parents[2] / "benchmarks" / "bench_vllm_equality.py"
CASES = [
    "three blocks, named features",
    "one prompt of 64 tokens, a block's end",
    "preemption, chunks of 24, one prompt",
    "positions='all', one prompt",
    "torch.compile",
    "V2 runner",
]
ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR"}
PROMPT = [5, 6, 7, 8, 9, 10, 11] * 10


@pytest.fixture(scope="module")
def model(help_folder) -> str:
    return str(help_folder / "models" / "help-qwen3-7m")


@pytest.fixture(scope="module")
def features(model, tmp_path_factory) -> Path:
    """A random direction at block 2."""
    width = json.loads((Path(model) / "config.json").read_text())["hidden_size"]
    direction = torch.randn(1, width, generator=torch.Generator().manual_seed(0))
    random = FeatureSet.from_directions(direction, blocks=[2], names=["random"], residual_norms=[64.0])
    return random.save(tmp_path_factory.mktemp("features") / "random.safetensors")


def in_an_engine(code: str, model: str, features: Path, **variables: str) -> dict:
    """What a program with an engine prints last, as JSON. It has `LLM`, `SamplingParams` and the two paths."""
    head = f"""
import json
from vllm import LLM, SamplingParams
from sae_posttrain import FeatureSet
from sae_posttrain.serving import RowSettings, SteeredLLM, engine_arguments
model, path, prompt = {model!r}, {str(features)!r}, {PROMPT!r}
OPTIONS = dict(model=model, dtype="float32", max_model_len=256, block_size=32, max_num_seqs=8)
"""
    environment = {**os.environ, **ON_CPU, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", **variables}
    words = [sys.executable, "-c", head + code]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_names_inside_vllm_are_where_they_were():
    from vllm.config import VllmConfig
    from vllm.config.cache import CacheConfig
    from vllm.config.compilation import PassConfig
    from vllm.config.model import ModelConfig
    from vllm.config.parallel import ParallelConfig
    from vllm.platforms import current_platform
    from vllm.sampling_params import SamplingParams
    from vllm.utils.import_utils import resolve_obj_by_qualname
    from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
    from vllm.v1.worker.gpu.input_batch import InputBatch as BatchV2
    from vllm.v1.worker.gpu_input_batch import InputBatch as BatchV1

    from sae_posttrain.serving.vllm_names import WORKERS, base_worker

    assert current_platform._enum.name.lower() == "cpu"
    worker = base_worker()
    assert worker is resolve_obj_by_qualname(WORKERS["cpu"])
    for method in ("load_model", "execute_model", "execute_dummy_batch"):
        assert callable(getattr(worker, method))
    assert not hasattr(worker, "steering_report")
    fields = {
        NewRequestData: ("req_id", "sampling_params", "prompt_token_ids", "prompt_embeds"),
        SchedulerOutput: ("scheduled_new_reqs", "finished_req_ids", "total_num_scheduled_tokens"),
        BatchV2: ("req_ids", "query_start_loc_np", "num_computed_tokens_np", "num_tokens"),
        VllmConfig: ("additional_config", "speculative_config", "kv_transfer_config", "compilation_config"),
        ParallelConfig: (
            "pipeline_parallel_size",
            "prefill_context_parallel_size",
            "decode_context_parallel_size",
            "enable_dbo",
        ),
        CacheConfig: ("kv_sharing_fast_prefill",),
        PassConfig: ("enable_sp",),
    }
    for of, names in fields.items():
        assert set(names) <= set(of.__annotations__), of
    assert isinstance(ParallelConfig.use_ubatching, property)
    assert callable(ModelConfig.using_transformers_backend)
    source = inspect.getsource(BatchV1)
    for name in ("def num_reqs", "def req_ids", "num_computed_tokens_cpu"):
        assert name in source, name
    params = SamplingParams(temperature=0.5, top_p=0.5)
    assert params.__replace__(temperature=0.0).top_p == 1.0  # what follows from a temperature is worked out anew
    assert SamplingParams().extra_args is None


def test_the_two_runners_order_a_batch_where_they_did():
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner as V2
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as V1

    assert next(iter(inspect.signature(V1._prepare_inputs).parameters)) == "self"
    assert list(inspect.signature(V1._prepare_inputs).parameters)[1] == "scheduler_output"
    assert not hasattr(V2, "_prepare_inputs")
    assert inspect.signature(V2.prepare_inputs).return_annotation.__name__ == "InputBatch"
    assert "self.query_start_loc" in inspect.getsource(V1._prepare_inputs)


@pytest.mark.parametrize("case", CASES)
def test_steered_rows_of_a_mixed_batch_have_the_tokens_of_transformers(case, model, tmp_path):
    words = [sys.executable, str(EQUALITY), "--model", model, "--cases", case, "--out", str(tmp_path / "case.json")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    [found] = json.loads((tmp_path / "case.json").read_text())["cases"]
    assert found["equal"] == found["rows"] == 8
    assert found["steered_rows_that_differ_from_plain"] >= 3
    if "preemption" in case:
        assert found["preemptions"] > 0


def test_a_salt_keeps_pushed_values_out_of_plain_answers(model, features):
    found = in_an_engine(
        """
llm = LLM(**OPTIONS, enforce_eager=True, **engine_arguments(path))
def plain(ids):
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=0)
    out = llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)[0]
    return out.num_cached_tokens, [next(iter(each.values())).logprob for each in out.outputs[0].logprobs]
params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
found = {}
for with_salt in (False, True):
    llm.reset_prefix_cache()
    row = RowSettings(1.0)
    if with_salt:
        steered = SteeredLLM(llm, FeatureSet.load(path))
        with steered.armed([row]):
            out = steered.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
    else:
        params.extra_args = {"steer": 1.0}
        out = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
        params.extra_args = None
    longer = prompt + list(out[0].outputs[0].token_ids)
    cached, got = plain(longer)
    llm.reset_prefix_cache()
    _, want = plain(longer)
    found[with_salt] = [cached, max(abs(a - b) for a, b in zip(got, want))]
print(json.dumps({str(k): v for k, v in found.items()}))
""",
        model,
        features,
    )
    cached, difference = found["False"]
    assert cached >= 96 and difference > 1e-3  # the danger is real
    cached, difference = found["True"]
    assert cached <= 64 and difference < 1e-6


def test_a_hook_that_a_compiled_graph_does_not_have_is_caught(model, features):
    found = in_an_engine(
        """
from sae_posttrain.serving.engine_steering import EngineSteering
attach, later = EngineSteering.attach, []
EngineSteering.attach = lambda self, blocks: later.append((self, blocks))
import os, tempfile
os.environ["VLLM_CACHE_ROOT"] = tempfile.mkdtemp()  # graphs with hooks are kept elsewhere
llm = LLM(**OPTIONS, **engine_arguments(path))
for each in later:
    attach(*each)
steered = SteeredLLM(llm, FeatureSet.load(path))
said = "nothing"
try:
    with steered.armed([RowSettings(1.0)]):
        steered.generate([{"prompt_token_ids": prompt}], SamplingParams(max_tokens=8, ignore_eos=True), use_tqdm=False)
except ValueError as error:
    said = str(error)
print(json.dumps({"said": said}))
""",
        model,
        features,
    )
    assert "8 tokens, but only 0 positions were pushed along 'random' at block 2" in found["said"]


def test_evaluations_by_vllm_have_the_answers_of_transformers(model, features):
    found = in_an_engine(
        """
import tempfile, torch
from pathlib import Path
from transformers import AutoTokenizer
from sae_posttrain import evaluate
tokenizer = AutoTokenizer.from_pretrained(model)
tokenizer.eos_token = "."  # the model hardly ever ends by itself
titles = ["Printing a page", "Guardar un archivo", "파일 열기", "Сохранить файл", "保存文件", "Macros"] * 2
rows = [{"id": i, "lang": "en", "prompt": title + "\\n"} for i, title in enumerate(titles)]
folder, found = Path(tempfile.mkdtemp()), {}
def answers(name, **settings):
    evaluate(model, rows, output_dir=folder / name, tokenizer=tokenizer, batch_size=8, progress=False, **settings)
    return [json.loads(line) for line in (folder / name / "answers.jsonl").read_text().splitlines()]
for engine in ("transformers", "vllm"):
    found[engine] = answers(engine, engine=engine, temperature=0, max_new_tokens=96)
sampling = dict(engine="vllm", temperature=1.0, max_new_tokens=48)
torch.manual_seed(3)
before = torch.get_rng_state()
found["sampled"] = [each["answer"] for each in answers("sampled", **sampling)]
found["state is kept"] = torch.equal(torch.get_rng_state(), before)
(folder / "again").mkdir()
(folder / "again" / "settings.json").write_bytes((folder / "sampled" / "settings.json").read_bytes())
first = (folder / "sampled" / "answers.jsonl").read_text().splitlines(keepends=True)[:8]
(folder / "again" / "answers.jsonl").write_text("".join(first))
found["continued"] = [each["answer"] for each in answers("again", **sampling)]
print(json.dumps(found))
""",
        model,
        features,
    )
    assert found["vllm"] == found["transformers"]
    assert len({each["finished"] for each in found["vllm"]}) == 2  # both ends occur
    assert found["continued"] == found["sampled"]
    assert len(set(found["sampled"])) == 12  # equal prompts have answers of their own
    assert found["state is kept"]


def test_features_are_calibrated_as_with_transformers_and_found(model, features):
    """
    Greedy answers, plain and pushed, are the same. The search needs sampled answers too, which another engine draws
    differently, so it is only run.
    """
    found = in_an_engine(
        """
import torch
from sae_posttrain import FrozenSAE, calibrate, find_repetition_features
from sae_posttrain.saes import SAESource
prompts = [[5 + i, *range(20, 26 + i % 5)] for i in range(48)]
generator = torch.Generator().manual_seed(0)
weights = torch.randn(12, FeatureSet.load(path).d_model, generator=generator)
zeros = torch.zeros(weights.shape[1])
source = SAESource("", None, "w.pt", "qwen_scope", None)
biases = torch.full((12,), 1e4)
sae = FrozenSAE(
    W_enc=weights.T, b_enc=biases, W_dec=weights, b_dec=zeros, activation="relu", block=2, source=source
)
found = {}
for engine in ("transformers", "vllm"):
    how = dict(engine=engine, batch_size=24, max_new_tokens=96, temperature=0.0)
    if engine == "vllm":
        how["engine_kwargs"] = {"gpu_memory_utilization": 0.1}
    swept = calibrate(model, FeatureSet.load(path), prompts, strengths=[0.5, 4.0], target=1.0, num_prompts=24, **how)
    rows = [[row.num_hits, row.mean_length, round(row.loss, 4)] for row in swept.rows]
    found[engine] = rows
many = find_repetition_features(
    model, sae, prompts=prompts, num_loops=6, num_prompts=3, num_candidates=3, normal_temperature=1.0,
    strength=2.0, **how,
)
found["many"] = [many.names, many.scores["causal_share"].tolist()]
print(json.dumps(found))
""",
        model,
        features,
    )
    assert found["vllm"] == found["transformers"]
    assert len({tuple(row) for row in found["vllm"]}) == 3  # the strengths do different things
    names, shares = found["many"]
    assert names and all(0 <= share <= 1 for share in shares)


@contextmanager
def running(log: Path, words: list[str], **variables: str):
    """A server on a free port: its address and its process. All of its processes are ended with it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager"]
    options += ["--max-model-len", "256", "--block-size", "32", "--served-model-name", "help"]
    with log.open("w") as said:
        process = subprocess.Popen(
            [*words, *options],
            env={**os.environ, **ON_CPU, "VLLM_LOGGING_LEVEL": "INFO", **variables},
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        began = time.monotonic()
        while True:  # a start takes 20 s of the processor, and minutes where others use it
            if process.poll() is not None or time.monotonic() - began > 900:
                pytest.fail(log.read_text()[-3000:])
            try:
                if requests.get(f"{address}/health", timeout=5).status_code == 200:
                    break
            except requests.RequestException:
                time.sleep(1)
        yield address, process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)


@pytest.fixture(scope="module")
def started(model, features, tmp_path_factory):
    """A server, started as the command line starts it: its address and its process."""
    environment, words = server_command(model, features, training=True)
    with running(tmp_path_factory.mktemp("server") / "log", words, **environment) as server:
        yield server


@pytest.fixture(scope="module")
def server(started) -> str:
    """Its address."""
    return started[0]


def complete(server, **more):
    body = {"model": "help", "prompt": PROMPT, "max_tokens": 24, "temperature": 0, "ignore_eos": True, **more}
    return requests.post(f"{server}/v1/completions", json={**body, "return_token_ids": True}, timeout=120)


def test_a_request_is_steered_by_what_it_says(server):
    plain = complete(server).json()["choices"][0]["token_ids"]
    for steer in (1.5, "1.5", "random=1.5", "random/random=1.5"):
        pushed = complete(server, vllm_xargs={"steer": steer}).json()["choices"][0]["token_ids"]
        assert pushed != plain
    assert complete(server).json()["choices"][0]["token_ids"] == plain


def test_a_request_that_cannot_be_steered_is_answered_with_what_is_wrong(server):
    response = complete(server, vllm_xargs={"steer": "loops=1"})
    assert response.status_code == 400
    assert "'loops', which this engine does not know. Known: random" in response.json()["error"]["message"]


def test_rows_of_a_group_come_back_in_order_from_a_server(server, features):
    from trl.generation.vllm_client import VLLMClient

    client = SteeredClient(VLLMClient(base_url=server, connection_timeout=5), FeatureSet.load(features))
    rows = [RowSettings(), RowSettings(1.5), RowSettings(sampling={"temperature": 0.0}), RowSettings(1.5)]
    with client.armed(rows * 2):
        out = client.generate(
            prompts=[PROMPT, PROMPT[:9]],
            n=4,
            temperature=1.0,
            top_k=1,
            max_tokens=24,
            generation_kwargs={"ignore_eos": True},
        )
    for first, second, third, fourth in (out["completion_ids"][:4], out["completion_ids"][4:]):
        assert first == third
        assert second == fourth
        assert first != second
    assert [len(ids) for ids in out["prompt_ids"]] == [70, 9]
    with pytest.raises(ValueError, match="steers in the unit 'norm', not 'raw'"):
        SteeredClient(VLLMClient(base_url=server), FeatureSet.load(features), unit="raw")


def test_the_openai_client_steers_a_conversation(server):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none")

    def ask(**more):
        return (
            client.chat.completions.create(
                model="help",
                messages=[{"role": "user", "content": "How do I print a page?"}],
                max_tokens=32,
                temperature=0,
                **more,
            )
            .choices[0]
            .message.content
        )

    plain = ask()
    assert ask(extra_body={"vllm_xargs": {"steer": "random=1.5"}}) != plain
    assert ask() == plain


def test_the_trainer_takes_two_steps_with_a_server(server, model, features, tmp_path):
    """Weights cannot be sent to a server on a CPU, since that takes NCCL: the server's stay, and ours do not move."""
    script = Path(__file__).parents[1] / "rl" / "vllm_training.py"
    settings = {"num_cold": 1, "steer_temperature": 0.7, "off_policy_weight": "truncated", "learning_rate": 0.0}
    words = [sys.executable, str(script), "--model", model, "--out", str(tmp_path / "run"), "--steps", "2"]
    words += ["--server", server, "--features", str(features), "--settings", json.dumps(settings)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"explained"')))
    for pushed, unpushed, plain in found["explained"]:
        assert pushed < 1e-4 and plain < 1e-4 and unpushed > 0.05
    trained = [entry for entry in found["logs"] if "grad_norm" in entry]
    assert len(trained) == 2 and all(entry["grad_norm"] > 0 for entry in trained)
    assert all(entry["cold/advantage_share"] > 0 and entry["steer/advantage_share"] > 0 for entry in trained)


def test_a_server_without_our_worker_is_refused(model, features, tmp_path):
    from trl.generation.vllm_client import VLLMClient

    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    with running(tmp_path / "log", words, VLLM_SERVER_DEV_MODE="1") as (address, _):
        plain = complete(address).json()["choices"][0]["token_ids"]
        ignored = complete(address, vllm_xargs={"steer": 1.5}).json()["choices"][0]["token_ids"]
        assert ignored == plain  # it takes the request and does not push: the reason for the refusal
        client = VLLMClient(base_url=address)
        with pytest.raises(ValueError, match="runs the worker .*, which ignores steering. Start it with the command"):
            SteeredClient(client, FeatureSet.load(features))
        cold = SteeredClient(client, None)  # for rows of their own temperature it will do
        with cold.armed([RowSettings(), RowSettings(sampling={"temperature": 0.0})]):
            out = cold.generate(prompts=[PROMPT], n=2, max_tokens=24, generation_kwargs={"ignore_eos": True})
        assert out["completion_ids"][1] == plain


def test_a_server_that_is_killed_while_it_generates_is_an_error(started, features):
    """The last test of this server."""
    from trl.generation.vllm_client import VLLMClient

    address, process = started
    client = SteeredClient(VLLMClient(base_url=address), FeatureSet.load(features))
    client.session.mount("http://", requests.adapters.HTTPAdapter())  # TRL's tries again for two minutes
    rows = [RowSettings(), RowSettings(1.5)] * 16
    with ThreadPoolExecutor(1) as pool, client.armed(rows):
        asked = {"n": 32, "max_tokens": 180, "generation_kwargs": {"ignore_eos": True}}
        answers = pool.submit(client.generate, prompts=[PROMPT], **asked)
        time.sleep(1)
        assert not answers.done()
        os.killpg(process.pid, signal.SIGKILL)
        with pytest.raises(requests.RequestException):
            answers.result(120)
    with pytest.raises(requests.RequestException):
        client._report()
