# Everything installs into .venv from pip's own configured index; versions are pinned in constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.PHONY: demo test lint slow results site install clean

install: $(STAMP)

# torch goes first and alone, and its CPU build where pip's index or PyTorch's own has one: left to itself pip takes gigabytes of
# CUDA packages. `make TORCH_INDEX=` takes what pip takes, for a GPU.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH_FROM := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX) --retries 1)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 15) else 'Python 3.11 to 3.14 is needed; set PYTHON=')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-input --no-deps $(TORCH_FROM) torch==2.13.0
	$(BIN)/python -m pip install --quiet --no-input -c constraints.txt -e '.[viz,tb,dev]'
	touch $(STAMP)

# Trains on cart-pole, tests on unseen tasks, prints the table, where the pictures and the film are, and how to play with it.
demo: $(STAMP)
	$(BIN)/python -m mbrl_lightning.fit conf=cartpole out=runs/demo overwrite=true video=true
	@echo "the film: runs/demo/cartpole/gssm_aps/seed0/videos/policy.mp4 and .gif"
	@echo "to play with it: $(BIN)/python -m pip install -c constraints.txt -e '.[play]' && $(BIN)/python -m mbrl_lightning.play run=runs/demo/cartpole/gssm_aps/seed0"

test: $(STAMP)
	$(BIN)/python -m pytest -q -n 2

slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

# Takes over the rows of finished runs and writes all numbers and curves of docs/results/.
results: $(STAMP)
	$(BIN)/python docs/update_results.py

# The site, into build/site/html.
site: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-input -c constraints.txt -e '.[docs]'
	$(BIN)/python docs/build_site.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
