# Run `make` for the list of targets. Without make, README.md gives the same steps.
PYTHON ?= python3
# From the command line only: in the environment these may mean anything
DATA :=
ONLY :=
PADDLECLAS :=
PADDLE_PYTHON :=
RUN := runs
MINUTES := 60
BIN := .venv/bin
STAMP := .venv/.installed
TIMES := .venv/times.json
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export DATA

PYTEST := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -q --times=$(TIMES)
# They look at the clock or need the whole machine, so they run one after the other, and of all others two files at a time
ALONE := alone or browser or netns

.DEFAULT_GOAL := help
# One step after the other, also under -j: cheapest first, and pytest's closing line last
.NOTPARALLEL:
.PHONY: help quickstart test lint sync notebooks pytest lab app docs bench soak walk clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-12s%s\n", $$1, $$2}' Makefile

quickstart: $(STAMP) ## Install, then train on a small data set or on DATA=folder, and leave a model.onnx
	@$(BIN)/imgcls quickstart $${DATA:+"$$DATA"}

test: lint sync notebooks pytest ## All checks, cheapest first

lint: $(STAMP) ## ruff
	@$(BIN)/ruff check --quiet

sync: $(STAMP) ## The package is the export of the notebooks, and the notebooks are clean
	@$(BIN)/python tools/sync.py

notebooks: $(STAMP) ## Every chapter runs
	@temp=$$(mktemp -d) && trap 'rm -rf "$$temp"' EXIT && TMPDIR="$$temp" PATH="$(CURDIR)/$(BIN):$$PATH" \
	  OMP_NUM_THREADS=1 IMGCLS_CACHE="$(CURDIR)/.venv/cache" $(BIN)/nbdev-test --n-workers 2

# Status 5: there is none of them
pytest: $(STAMP) ## The rest of the tests, the tutorials among them; the ten slowest are named at the end
	@rm -f $(TIMES); red=0; $(PYTEST) -m "$(ALONE)" || test $$? = 5 || red=1; \
	  $(PYTEST) -m "not ($(ALONE))" -n 2 --dist loadfile --no-loadscope-reorder && exit $$red

lab: $(STAMP) ## JupyterLab on the tutorials, on this machine only
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/imgcls lab nbs/tutorials

app: $(STAMP) ## The viewers as a page for people who do not read code: make app RUN=runs/quickstart
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/imgcls app "$(RUN)"

docs: $(STAMP) ## Chapters, tutorials and reference as a site in build/site, links and pictures checked
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/docs.py

bench: $(STAMP) ## Measure against the peers: hours; ONLY="widgets data" measures these again
	@$(BIN)/pip install --quiet -r benchmarks/requirements.txt
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/all.py $(if $(ONLY),--only $(ONLY)) \
	  $(if $(PADDLECLAS),--paddleclas "$(PADDLECLAS)") $(if $(PADDLE_PYTHON),--paddle-python "$(PADDLE_PYTHON)"); \
	  status=$$?; $(BIN)/python tools/readme.py && exit $$status

soak: $(STAMP) ## MINUTES (60) of random actions over runs, everything looked at after each; not part of the tests
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/soak.py --minutes $(MINUTES)

walk: ## Clone into an empty folder and do what README and the tutorials say, word for word; not part of the tests
	@$(PYTHON) tests/walk.py

clean: ## Remove what builds and tests leave behind; the virtual environment stays
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis nbs/models
	@find imgcls_nb nbs tests tools benchmarks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

$(STAMP): settings.ini setup.py pyproject.toml
	@test -x $(BIN)/pip || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "imgcls_nb needs Python 3.11 or newer, and '$(PYTHON)' is not; name another one: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@echo "Installing imgcls_nb and what it needs into .venv; the first time takes some minutes."
	@$(BIN)/pip install --quiet -e ".[train,lab,serve,app,docs,dev]"
	@touch $@
