# The same commands for people and for CI. Everything is set up on first use, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Byte-compiling at installation makes every later start two to three times faster.
export UV_COMPILE_BYTECODE := 1
export UV_LINK_MODE := copy
# Certificates of a company's network are where pip finds them: in the system's store, or where PIP_CERT says.
export UV_SYSTEM_CERTS := true
ifndef SSL_CERT_FILE
ifdef PIP_CERT
CERTIFICATES := SSL_CERT_FILE="$(PIP_CERT)"
endif
endif
# uv does not read pip's settings; a local folder of wheels is passed on. Elsewhere the driver decides: CUDA or CPU.
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS := $(PIP_FIND_LINKS)
else
TORCH := --torch-backend=auto
endif

# Programs of an environment name its folder: moved or copied with the project, they would run (and install into) the
# old one. A linked folder is somebody else's, and stays.
ifneq ($(wildcard $(BIN)/pip),)
ifneq ($(shell test -L $(VENV) || head -n 2 $(BIN)/pip | grep -qF "$(CURDIR)/$(BIN)/python" || echo moved),)
MOVED := remake
.PHONY: $(STAMP)
endif
endif

# Run a command that says nothing itself, and say every ten seconds that it is still at work.
aloud = echo "$(subst ",\",$(1))"; (n=0; while sleep 10 >/dev/null 2>&1; do n=$$((n + 10)); echo "installing: $$n s so far"; done) & beat=$$!; \
	$(1); code=$$?; kill $$beat; exit $$code

.PHONY: help run test integration chaos bench flames audit lint format clean services experiment gpu-bundle accuracy rooms site install

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed, found $$($(PYTHON) --version); run: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -z "$(MOVED)" || { echo "$(VENV) was made in another folder: it is made again here"; rm -rf $(VENV); }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): a minute or two, 2.5 GB"
	@$(call aloud,$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt uv)
	@$(call aloud,$(CERTIFICATES) $(BIN)/uv pip install -q --python $(BIN)/python $(TORCH) -c constraints.txt -e '.[dev]')
	@touch $@

install: $(STAMP) ## install everything into .venv, run nothing

run: $(STAMP) ## train, calibrate, evaluate and register detectors; ARGS="--set key=value ..." is passed on
	@$(BIN)/python -m flows train $(ARGS)

# As many processes as cores, of one thread each; a module stays in one process, which makes its fixtures once.
test: $(STAMP) ## all tests but those of integration
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadscope --no-loadscope-reorder -m "not integration" $(ARGS)

integration: $(STAMP) ## minutes: retraining, gate and rollback with every real part, the services of one machine
	@$(BIN)/python -m pytest -m integration $(ARGS)

services: $(STAMP) ## start PostgreSQL, S3, MLflow, Prefect and a worker; ARGS="down", "status" or "logs NAME"
	@$(BIN)/python -m flows services $(or $(ARGS),up)

experiment: $(STAMP) ## answer an open question of the method: NAME=lambda, or all, or list
	@$(BIN)/python -m flows experiment $(or $(NAME),list) $(ARGS)

gpu-bundle: $(STAMP) ## pack source and one class, CLASS=bottle, for a machine with a GPU: at most 64 MB, below .pvqae/gpu
	@$(BIN)/python -m flows.experiments.gpu --pack "$(CLASS)" $(ARGS)

accuracy: $(STAMP) ## ours beside PatchCore and a no-model control, with intervals; ARGS="--data FOLDER --classes a,b"
	@$(BIN)/python -m flows bench accuracy $(ARGS)

chaos: $(STAMP) ## an hour: bad input, kills and faults of services at full size; writes the table of docs/reliability.md
	@PVQAE_CHAOS=full $(BIN)/python -m pytest tests/chaos -m "integration or not integration" -x $(ARGS)
	@$(BIN)/python -m tests.chaos.figures

bench: $(STAMP) ## what is fast, as ratios measured side by side; ARGS="NAME ... --quick"; writes docs/performance.md
	@$(BIN)/python -m tests.bench $(ARGS)

flames: $(STAMP) ## flame graphs of training, inference and a flow; writes docs/pictures/flame_*.svg
	@$(BIN)/python -m tests.bench.flames $(ARGS)

rooms: $(STAMP) ## draw the rooms of both packages from the import graph; writes docs/pictures/rooms.svg
	@$(BIN)/python -m tests.architecture

audit: $(STAMP) ## known vulnerabilities of what is installed (asks an advisory service)
	@$(BIN)/python -m tests.audit

lint: $(STAMP) ## ruff, mypy, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PYTHONPATH=. $(BIN)/lint-imports

site: $(STAMP) ## build the documentation as a site into site/; a page that is missing or a dead link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -q

format: $(STAMP) ## let ruff rewrite the sources
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## remove what runs left behind; installation, data and registry stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
