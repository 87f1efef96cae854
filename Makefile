# Every target makes its environment first: a plain venv, filled by uv (seconds when its cache is warm).
# Only Python >= 3.10, pip and make are needed on the machine.
PYTHON ?= python3
TASK   ?= glacier
NB     ?= nbs
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help setup demo test test-latest notebooks export docs kaggle-dataset bench ablations clean

help:           ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable ".[dev]"
	@touch $@

setup: $(READY)         ## make the environment in .venv

demo: $(READY)          ## run a task's kernel notebook on embedded data (TASK=glacier, SMOKE=1 for a quick look)
	$(BIN)/python tools/demo.py $(TASK)

test: $(READY)          ## run every notebook and every test, on both fastai lines
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests

test-latest:            ## the same in .latest, with the newest release of every dependency; lists those that pyproject.toml holds back
	$(PYTHON) -m venv --clear .latest
	.latest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade uv
	.latest/bin/uv pip install --quiet --refresh --upgrade --resolution highest --python .latest/bin/python --editable ".[dev]"
	.latest/bin/uv pip list --outdated --python .latest/bin/python
	OMP_NUM_THREADS=1 .latest/bin/python -m pytest -n 2 --dist worksteal tests

notebooks: $(READY)     ## re-execute notebooks and store their outputs (NB=nbs/core/00_files.ipynb for one)
	$(BIN)/python tools/execute.py $(NB)
	$(MAKE) --no-print-directory export

export: $(READY)        ## make clearsight_nb/, kaggle_kernels/ and README.md from the notebooks
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export
	$(BIN)/python tools/generate.py

docs: $(READY)          ## make the site in _docs/html; it can be read from there, without a server or a network
	$(BIN)/python docs/adapter.py _docs/source
	$(BIN)/python -m sphinx -W --keep-going -q -c docs _docs/source _docs/html

kaggle-dataset: $(READY)  ## make dist/kaggle/: wheels as a data set, and the kernels that use it (OWNER=your Kaggle account)
	$(BIN)/python tools/kaggle_dataset.py $(OWNER)

bench: $(READY)         ## run the benchmarks that fit in half an hour, those for a GPU where there is one, and write benchmarks/README.md
	$(BIN)/python benchmarks/run.py

ablations: $(READY)     ## train what nbs/glacier/80_ablations.ipynb shows (under an hour on two cores, resumable)
	$(BIN)/python tools/ablations.py

clean:          ## remove everything the other targets made
	rm -rf $(VENV) .newest .latest build dist demo runs _proc _docs *.egg-info .pytest_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
