#!/usr/bin/env bash
# Run and analyse the standard CPU study (conf/experiment/cpu_scaling.yaml). Arguments are
# overrides: bash scripts/run_cpu_experiments.sh repeat=3 measure=rigorous
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
exec "${DPEVAL_VENV:-.venv}/bin/python" -m dpeval.train experiment=cpu_scaling "$@"
