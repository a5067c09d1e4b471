#!/usr/bin/env bash
# Set up and pass all tests: lint, types, then the tiers named as arguments (default: all).
#   bash scripts/test.sh unit        the fast tier alone
# What this machine cannot run is skipped by name and counted at the end; with
# DPEVAL_NO_SKIP=1, as in CI, a skip is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh dev
bin=${DPEVAL_VENV:-.venv}/bin
tiers=("$@")
[ ${#tiers[@]} -gt 0 ] || tiers=(unit multiprocess cluster browser)
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
rm -f .coverage .coverage.*
"$bin/coverage" run -m pytest "${tiers[@]/#/tests/}"
"$bin/coverage" combine --quiet
"$bin/coverage" report | tail -n 3
