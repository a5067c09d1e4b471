#!/usr/bin/env bash
# Set up, then run lint, type checks and the test tiers given as arguments (default: all).
#   bash scripts/test.sh unit        only the fast tier
# Tests that cannot run on this machine are skipped, listed and counted at the end; with
# DPEVAL_NO_SKIP=1, as in CI, a skip is a failure. DPEVAL_COVERAGE=1 also measures which lines the
# tests reach; with it the fast tier takes twice as long.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh dev
bin=${DPEVAL_VENV:-.venv}/bin
tiers=("$@")
[ ${#tiers[@]} -gt 0 ] || tiers=(unit multiprocess cluster browser extend)
times=() failed=()

# Run one part and note its duration; if it fails, the other parts still run.
part() {
  local name=$1 begin=$SECONDS
  shift
  "$@" || failed+=("$name")
  local took=$((SECONDS - begin))
  times+=("$(printf '%-16s %3d min %02d s' "$name" $((took / 60)) $((took % 60)))")
}
lint() { "$bin/ruff" check . && "$bin/ruff" format --check . && "$bin/lint-imports" && "$bin/mypy"; }
alone() {
  local run=("$bin/python")
  [ -z "$measured" ] || run=("$bin/coverage" run)
  "${run[@]}" -m pytest "$@"
}
# Two at a time: such tests mostly wait for programs to start or for a scheduler.
# Tests of a file run in one process, to share its cluster and its expensive fixtures; tests of the
# tier multiprocess share little, so the worker that is done first takes some of the other's.
two_at_once() {
  local share=loadfile cover=()
  [ "$1" != multiprocess ] || share=worksteal
  [ -z "$measured" ] || cover=(--cov --cov-report=)
  COVERAGE_FILE=.coverage.two_at_once.$1 "$bin/python" -m pytest -n 2 --dist $share \
    "${cover[@]}" "${@:2}"
}

measured=${DPEVAL_COVERAGE:-}
rm -f .coverage .coverage.*
part "lint and types" lint
for tier in "${tiers[@]}"; do
  case $tier in
    multiprocess)
      part multiprocess two_at_once "$tier" tests/multiprocess -m "not timing"
      part timing alone tests/multiprocess -m timing
      ;;
    unit | cluster | extend) part "$tier" two_at_once "$tier" "tests/$tier" ;;
    *) part "$tier" alone "tests/$tier" ;;
  esac
done
if [ -n "$measured" ]; then
  "$bin/coverage" combine --quiet
  "$bin/coverage" report | tail -n 3
fi
printf '%s\n' "${times[@]}" "$(printf '%-16s %3d min %02d s' total $((SECONDS / 60)) $((SECONDS % 60)))"
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
