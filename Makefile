# make serve   a memory server on 127.0.0.1:8000, from a fresh machine with Python 3.11, make and a package index
# make test    everything that is checked: style, types, import rules, tests
# make soak    the durability and multi-process tests in full: 50 rounds of kills, half an hour
# make warm-start   makes the mini policy's warm start anew, as it is shipped; half an hour
# make bench   ours against other memory servers, one table; half an hour. HOTPOTQA=DIR and LOCOMO=FILE: what is found as well
# make bench-quick   the same with 1,000 facts, in minutes

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: serve test soak check format warm-start bench bench-quick clean

WARM_START := training/agemem_training/data/mini
# A new one each time: a folder that a run is in takes no second one.
WARM_START_RUN := runs/warm-start-$(shell date +%Y%m%d-%H%M%S)

serve: $(VENV)/.installed
	$(BIN)/agemem-mcp assets pull
	$(BIN)/agemem-mcp serve --transport http

test: check
	$(BIN)/agemem-mcp assets pull
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder --cov --cov-report=term

soak: $(VENV)/.installed-test
	SOAK_ROUNDS=50 $(BIN)/python -m pytest tests/e2e/test_durability.py tests/e2e/test_daemon.py tests/e2e/test_bad_clients.py tests/e2e/test_bad_input.py

check: $(VENV)/.installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

warm-start: $(VENV)/.installed-test
	$(BIN)/agemem-mcp assets pull
	$(BIN)/agemem-mcp train --preset mini --iterations 0 --out $(WARM_START_RUN)
	mkdir -p $(WARM_START) && cp $(WARM_START_RUN)/start/* $(WARM_START)/

bench: $(VENV)/.installed-test
	$(BIN)/agemem-mcp assets pull
	$(BIN)/python benchmarks/compare.py --json benchmarks/results/latest.json
	$(BIN)/python benchmarks/overhead.py --json benchmarks/results/overhead.json
ifneq ($(HOTPOTQA)$(LOCOMO),)
	$(BIN)/python benchmarks/retrieval.py $(if $(HOTPOTQA),--hotpotqa $(HOTPOTQA)/dev_distractor_100.json) $(if $(LOCOMO),--locomo $(LOCOMO))
endif
ifdef HOTPOTQA
	$(BIN)/python benchmarks/filter_context.py --data $(HOTPOTQA)
else
	@echo "Not all was measured: name the HotpotQA samples' folder and LoCoMo's file, make bench HOTPOTQA=DIR LOCOMO=FILE"
endif

bench-quick: $(VENV)/.installed-test
	$(BIN)/agemem-mcp assets pull
	$(BIN)/python benchmarks/compare.py --quick --json benchmarks/results/quick.json

clean:
	rm -rf $(VENV) benchmarks/.peers .pytest_cache .ruff_cache .hypothesis .coverage*

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@ $(VENV)/.installed
