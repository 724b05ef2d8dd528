# The two commands of this testbed are `make experiment FOCUS=3` and `make test`; the rest are their parts.

FOCUS ?= 1
# More variables for the playbook: make experiment FOCUS=2 ARGS="-e guests=4 -e guest_memory_mib=256"
ARGS ?=
RESULTS ?= results
# Goes on with that run: make experiment RUN_ID=20261123T210535Z
RUN_ID ?= $(NOW)
NOW := $(shell date -u +%Y%m%dT%H%M%SZ)
PYTHON ?= /usr/bin/python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Tests that play a playbook wait a part of their time.
WORKERS ?= $(shell expr $$(nproc) \* 3 / 2)
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: help experiment teardown test lint ruff mypy yamllint ansible-lint unit molecule molecule-vm system faults provision \
  chromium setup setup-dev clean
help:
	@echo 'make experiment FOCUS=1|2|3|all   set up this host, measure, print the summary'
	@echo 'make test                         set up and run lint, unit, role and system tests'
	@echo 'make faults                       interrupt and kill runs in each of their phases, an hour'
	@echo 'make molecule-vm                  the playbooks on Debian 12 and 13 servers in emulated machines, an hour at first'
	@echo 'make teardown                     remove the guests and restore the KSM settings'
	@echo 'make clean                        remove the guests, their checkpoints and the Python environment'

experiment: setup
	ansible-playbook playbooks/experiment.yml -e focus=$(FOCUS) -e run_id=$(RUN_ID) \
	  -e results_directory=$(abspath $(RESULTS)) $(ARGS)
	python -m analysis summarize --results $(RESULTS) --run $(RUN_ID)

teardown: setup
	ansible-playbook playbooks/teardown.yml $(ARGS)

# Two at a time; the one that takes longest begins first. What is provisioned by then need not be looked at again.
test: setup-dev
	$(MAKE) --no-print-directory --jobs=2 ansible-lint chromium mypy ruff yamllint
	$(MAKE) --no-print-directory --old-file=provision unit molecule system

lint: setup-dev
	$(MAKE) --no-print-directory --jobs=2 ansible-lint mypy ruff yamllint

ansible-lint: setup-dev
	ansible-lint --profile production --offline

mypy: setup-dev
	mypy

ruff: setup-dev
	ruff check

yamllint: setup-dev
	yamllint --strict .

unit: provision chromium
	pytest -m 'not system and not faults' --numprocesses=$(WORKERS) --dist=worksteal

molecule: provision
	tests/molecule.sh

# Servers of their own with systemd and kvm; the second run finds their disks provisioned
molecule-vm: provision
	cd tests/vm && molecule test

system: provision
	pytest -m system -v --durations=15

# Runs that are interrupted or killed in each of their phases; an hour
faults: provision
	pytest -m faults -v

# The host's packages and the guests' image, by the same roles as an experiment.
provision: setup-dev
	ansible-playbook playbooks/provision.yml --tags all,census

# The browser in which the report's page is looked at. apt is one at a time: after the packages of the host.
chromium: provision
	@command -v chromium >/dev/null || { $(SUDO) apt-get update -q && $(SUDO) apt-get install -yq --no-install-recommends chromium fonts-dejavu-core; }

setup: .venv/.runtime
setup-dev: .venv/.dev

# Debian's Python comes without venv; nothing else is needed before the roles can run.
.venv/bin/pip:
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { $(SUDO) apt-get update -q && $(SUDO) apt-get install -yq --no-install-recommends python3-venv; }
	$(PYTHON) -m venv .venv

.venv/.runtime: requirements.txt pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --quiet --require-hashes -r requirements.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

.venv/.dev: requirements-dev.txt .venv/.runtime
	$(BIN)/pip install --quiet --require-hashes -r requirements-dev.txt
	@touch $@

clean: setup
	ansible-playbook playbooks/clean.yml
	rm -rf .venv .cache *.egg-info
