#!/usr/bin/env bash
# Run and analyse the standard GPU study (conf/experiment/gpu_scaling.yaml). Arguments are
# overrides: bash scripts/run_gpu_experiments.sh repeat=3 measure=rigorous
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
exec "${DPEVAL_VENV:-.venv}/bin/python" -m dpeval.train experiment=gpu_scaling "$@"
