#!/usr/bin/env bash
# Set up, then run lint, type checks and the test tiers given as arguments (default: all but
# versions, which installs 12 GB once).
#   bash scripts/test.sh unit        only the fast tier
# Tests that cannot run on this machine are skipped, listed and counted at the end; with
# DPEVAL_NO_SKIP=1, as in CI, a skip is a failure. DPEVAL_COVERAGE=1 also measures which lines the
# tests reach; with it the fast tier takes twice as long.
set -euo pipefail
cd "$(dirname "$0")/.."
# As in CI, nothing is skipped: with what `dpeval export` writes to and the libraries whose training
# loops are metered, which takes a minute.
bash scripts/setup.sh "dev${DPEVAL_NO_SKIP:+,export,lightning,transformers}"
bin=${DPEVAL_VENV:-.venv}/bin
measured=${DPEVAL_COVERAGE:-}
tiers=("$@")
[ ${#tiers[@]} -gt 0 ] || tiers=(unit multiprocess own_training cluster browser extend docs faults)
results=$(mktemp -d) && touch "$results/failed" "$results/times" "$results/tests"
export DPEVAL_TEST_RESULTS=$results/tests
# Hundreds of programs start here; compiling dpeval anew takes each of them more than a second.
unset PYTHONDONTWRITEBYTECODE
# Several tests share the cores: threads that wait for each other busily would slow all of them.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# Run one part and note its duration; if it fails, the other parts still run.
part() {
  local name=$1 begin=$SECONDS
  shift
  "$@" || echo "$name" >>"$results/failed"
  local took=$((SECONDS - begin))
  printf '%-16s %3d min %02d s\n' "$name" $((took / 60)) $((took % 60)) >>"$results/times"
}
lint() { "$bin/ruff" check . && "$bin/ruff" format --check . && "$bin/lint-imports" && "$bin/mypy"; }
alone() {
  local run=("$bin/python")
  [ -z "$measured" ] || run=("$bin/coverage" run)
  "${run[@]}" -m pytest --durations 15 --durations-min 5 "$@"
}
# Several at a time: such tests mostly wait for programs to start or for a scheduler.
# Tests of a file run in one process, to share its cluster and its expensive fixtures; tests of the
# tier multiprocess share little, so the worker that is done first takes some of the other's.
at_once() {
  local workers=$1 tier=$2 share=loadfile cover=()
  shift 2
  [ "$tier" != multiprocess ] || share=worksteal
  [ -z "$measured" ] || cover=(--cov --cov-report=)
  COVERAGE_FILE=.coverage.at_once.$tier "$bin/python" -m pytest -n "$workers" --dist $share \
    --durations 15 --durations-min 5 "${cover[@]}" "$@"
}
run_tiers() {
  local tier
  for tier; do
    case $tier in
      unit) part "$tier" at_once 2 "$tier" "tests/$tier" ;;
      multiprocess) part "$tier" at_once 3 "$tier" tests/multiprocess -m "not timing" ;;
      timing) part "$tier" alone tests/multiprocess -m timing ;;
      # On a loaded machine a real scheduler may miss a moment that a test waits for; a second try
      # is shown as R.
      cluster) part "$tier" at_once 3 "$tier" "tests/$tier" --reruns 1 --reruns-delay 5 ;;
      extend | docs | own_training) part "$tier" at_once 2 "$tier" "tests/$tier" ;;
      # Real sweeps that suffer one fault each; python -m benchmarks.faults is the whole campaign.
      faults) part "$tier" "$bin/python" -m benchmarks.faults --count 60 --evenly --seed 17 ;;
      versions) part "$tier" bash scripts/test_versions.sh ;;
      *) part "$tier" alone "tests/$tier" ;;
    esac
  done
}

rm -f .coverage .coverage.*
# What mostly waits runs beside what computes now and then; the fast tier needs all cores, and what
# compares times runs alone, at the end.
fast=() waiting=() computing=() timed=()
for tier in "${tiers[@]}"; do
  case $tier in
    unit) fast=(unit) ;;
    cluster | versions) waiting+=("$tier") ;;
    timing) timed=(timing) ;;
    multiprocess) computing+=("$tier") timed=(timing) ;;
    *) computing+=("$tier") ;;
  esac
done
part "lint and types" lint
run_tiers "${fast[@]}"
if [ ${#waiting[@]} -gt 0 ] && [ ${#computing[@]} -gt 0 ]; then
  set -m  # a process group of its own, so that an interrupt also stops its schedulers
  run_tiers "${waiting[@]}" >"$results/waiting.log" 2>&1 </dev/null &
  beside=$!
  set +m
  trap 'kill -INT -- -$beside 2>/dev/null && wait $beside' EXIT
  run_tiers "${computing[@]}"
  wait $beside || true
  trap - EXIT
  cat "$results/waiting.log"
else
  run_tiers "${waiting[@]}" "${computing[@]}"
fi
run_tiers "${timed[@]}"
if [ -n "$measured" ]; then
  "$bin/coverage" combine --quiet
  "$bin/coverage" report | tail -n 3
fi
printf 'total            %3d min %02d s\n' $((SECONDS / 60)) $((SECONDS % 60)) >>"$results/times"
cat "$results/times"
failed=$(tr '\n' ' ' <"$results/failed")
sort -u "$results/tests" | sed 's/^/FAILED /'
rm -rf "$results"
if [ -n "$failed" ]; then
  echo "failed: $failed" >&2
  exit 1
fi
