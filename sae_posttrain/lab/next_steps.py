"""The end of the demo: three commands to try on the trained models. They run as printed."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from .arms import model_folder
from .switching import FEATURES_FILE, QUESTIONS_FILE, SAMPLING

SCRIPT_FILE = "steer.py"
RESULTS = "tried"
OWN = (SCRIPT_FILE, RESULTS)
"""The script that the commands use and the folder that they write, in the demo's folder."""

_SCRIPT = '''\
"""Ask the model of the demo that SASFT has trained: as it is, and pushed along the features that stand for Chinese."""

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_posttrain import FeatureSet, steer

FOLDER = Path(__file__).parent / "switching"
QUESTION = "{question}"

model = AutoModelForCausalLM.from_pretrained(FOLDER / "{model}")
tokenizer = AutoTokenizer.from_pretrained(FOLDER / "{model}")
features = FeatureSet.from_pretrained(FOLDER / "{features}")
prompt = tokenizer.apply_chat_template(
    [{{"role": "user", "content": QUESTION}}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
print(QUESTION)
for strength in (0.0, 0.06, 0.08):  # along each feature, in median residual norms
    with steer(model, features, strength=strength, allow_base_model="{model}"):
        ids = model.generate(**prompt, max_new_tokens=48, do_sample=False)
    answer = tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    print(f"\\nstrength {{strength}}:\\n{{answer}}")
'''
_QUESTION = "Please tell me step by step how to cook rice."


def write(folder: Path) -> str:
    """Write the files that the commands need into the demo's folder, and return the commands with comments."""
    switching = folder / "switching"
    sft, sasft = switching / "sft", switching / "sasft"
    script = _SCRIPT.format(question=_QUESTION, model=model_folder(sasft).name, features=FEATURES_FILE)
    if not (folder / SCRIPT_FILE).exists():  # the user may have changed it
        (folder / SCRIPT_FILE).write_text(script, encoding="utf-8")
    command, python = _command(), [_short(sys.executable)]
    sampling = [f"--{name.replace('_', '-')}={value}" for name, value in SAMPLING.items()]
    again = [
        *command,
        "evaluate",
        f"--model={model_folder(sasft)}",
        f"--prompts={switching / QUESTIONS_FILE}",
        *sampling,
    ]
    again += ["--seed=1", "--device=cpu", f"--compare={sft}", f"--out={folder / RESULTS / 'sasft-again'}"]
    runs = [switching / "before", sft, sasft, model_folder(sft), model_folder(sasft)]
    report = [*command, "report", *map(str, runs), f"--baseline={sft}", "--title=Planted language switching"]
    report += [f"--out={folder / RESULTS / 'report.html'}"]
    return (
        "Try the models that were trained:\n"
        f"\n# Does it hold when the answers are sampled once more, with another seed?\n{shlex.join(again)}\n"
        f"\n# Push the model into Chinese, from Python: a script to read and to change.\n"
        f"{shlex.join([*python, str(folder / SCRIPT_FILE)])}\n"
        f"\n# The same report of any runs of yours: answers and training.\n{shlex.join(report)}"
    )


def _command() -> list[str]:
    """How to call `sae-posttrain`: by its name if the name means this installation, otherwise by its path."""
    beside = Path(sys.executable).with_name("sae-posttrain")
    found = shutil.which("sae-posttrain")
    if found is not None and Path(found) == beside:
        return ["sae-posttrain"]
    return [_short(beside)] if beside.exists() else [_short(sys.executable), "-m", "sae_posttrain.cli"]


def _short(path: str | os.PathLike[str]) -> str:
    """The path, relative to the working directory if it is below it."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else str(path)
