# Every target is sufficient by itself on a bare Debian 12 as root: it installs what is missing, makes .venv, builds the
# kernel objects, and then does its work. A machine that has everything is asked nothing (no apt, no pip, no network).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help demo test bench lint format soak fuzz clean setup kernel bpffs debs-build debs-test debs-bench debs-guest debs-kernels

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
C_FILES := find kernel tests/fuzz -path kernel/build -prune -o \( -name '*.[ch]' ! -name vmlinux.h \) -print0

DEBS_BUILD := clang-19 llvm-19 bpftool libbpf-dev libelf-dev zlib1g-dev gcc libc6-dev make iproute2 util-linux procps \
	python3 python3-venv curl ethtool iptables
DEBS_TEST := clang-format-19 libclang-rt-19-dev etcd-server tcpdump nginx-light wrk
DEBS_BENCH := nginx-light haproxy wrk
# Other kernels to try the data path on, emulated. Where they cannot be had, tests/e2e/test_other_kernels.py skips and says so.
DEBS_GUEST := qemu-system-x86 busybox-static linux-image-amd64
DEBS_KERNELS := linux-image-6.12-amd64

# $(call debs,PACKAGES): install those which are missing. Only then is apt needed, and root.
define debs
missing=(); for p in $(1); do [[ "$$(dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null)" == installed ]] || missing+=($$p); done; \
if (( $${#missing[@]} )); then \
	if (( EUID != 0 )); then echo "missing Debian packages: $${missing[*]}"; echo "next: run as root, or: sudo apt-get install $${missing[*]}"; exit 1; fi; \
	echo "installing $${missing[*]}"; log=$$(mktemp); \
	{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $${missing[*]}; } >$$log 2>&1 \
		|| { cat $$log; rm -f $$log; echo "apt-get could not install $${missing[*]}: the reason is above"; exit 1; }; rm -f $$log; \
fi
endef

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile

demo: setup ## the tour: a mesh on this machine, from YAML to kernel counters, in a minute
	@$(BIN)/underpass demo $(ARGS)

test: setup debs-test debs-guest ## all tests that this machine can run, tier by tier; says what it skipped and why
	@$(BIN)/python -m tests.support.run $(ARGS)

bench: setup debs-bench ## measure none, kernel, envoy, haproxy and the control plane; tables and bench/results/*.json
	@$(BIN)/python -m bench.run $(ARGS)

lint: setup debs-test ## ruff, mypy --strict, import walls, clang-format (C warnings are errors of the build)
	@bad=0; \
	$(BIN)/ruff check --quiet . || bad=1; \
	$(BIN)/ruff format --check --quiet . || { echo "not formatted: the files above; next: make format"; bad=1; }; \
	$(BIN)/mypy --no-error-summary || bad=1; \
	out=$$($(BIN)/lint-imports --no-logo 2>&1) || { echo "$$out"; bad=1; }; \
	$(C_FILES) | xargs -0 -r clang-format-19 --dry-run -Werror || { echo "not formatted: the C files above; next: make format"; bad=1; }; \
	exit $$bad

format: setup debs-test ## rewrite files the way lint wants them
	@$(BIN)/ruff check --quiet --fix . || true
	@$(BIN)/ruff format --quiet .
	@$(C_FILES) | xargs -0 -r clang-format-19 -i

soak: setup debs-test debs-guest debs-kernels ## the long-running tests: random traffic over a lossy link, other kernels, edits under load
	@$(BIN)/python -m pytest tests -m slow --timeout 3600 $(ARGS)

fuzz: setup debs-test ## libFuzzer on the C core (ARGS='--seconds 60')
	@$(BIN)/python -m tests.fuzz.run $(ARGS)

clean: ## remove what was built, and whatever a lab left on this machine
	@if [[ -x $(BIN)/underpass ]] && (( EUID == 0 )); then $(BIN)/underpass lab down --all >/dev/null 2>&1 || true; fi
	@if [[ -e kernel/Makefile ]]; then $(MAKE) -s -C kernel clean; fi
	@rm -rf $(VENV) dist build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .fuzz bench/results
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup: debs-build $(STAMP) kernel bpffs

debs-build:
	@$(call debs,$(DEBS_BUILD))

debs-test:
	@$(call debs,$(DEBS_TEST))

debs-bench:
	@$(call debs,$(DEBS_BENCH))

debs-guest:
	@if [[ $$(uname -m) == x86_64 ]]; then ( $(call debs,$(DEBS_GUEST)) ) || echo "goes on without another kernel to boot"; fi

debs-kernels:
	@if [[ $$(uname -m) == x86_64 ]]; then ( $(call debs,$(DEBS_KERNELS)) ) || echo "goes on without that kernel"; fi

# The first interpreter of at least 3.11 that can make a virtual environment.
$(STAMP): pyproject.toml | debs-build
	@if ! $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		for py in $${PYTHON:-} python3 /usr/bin/python3 python3.13 python3.12 python3.11; do \
			if $$py -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$py; break; fi; \
		done; \
		[[ -n "$${found:-}" ]] || { echo "no Python of at least 3.11 with venv; next: apt-get install python3 python3-venv, or make PYTHON=/path/to/python3"; exit 1; }; \
		rm -rf $(VENV); $$found -m venv $(VENV); \
	fi
	@echo "installing Python packages into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[controlplane,nodeagent,dev]'
	@touch $@

kernel:
	@$(MAKE) -s -C kernel

# Pins live in bpffs; a bare machine may not have it mounted.
bpffs:
	@if (( EUID == 0 )) && ! mountpoint -q /sys/fs/bpf; then mount -t bpf bpf /sys/fs/bpf; fi
