#!/usr/bin/env bash
# From a fresh clone to a first study of this machine: sets up, measures, draws, says where all is.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
"${DPEVAL_VENV:-.venv}/bin/python" -m dpeval.train experiment=quickstart "$@"
latest=$(ls -d outputs/quickstart/*/ | tail -n 1)
cat <<END

What was made
  report    ${latest}analysis/report.html   (open it in a browser)
  records   ${latest}<run>/metrics.json
  tables    ${latest}analysis/summary.csv, runs.csv
  figures   ${latest}analysis/*.png

Next
  source ${DPEVAL_VENV:-.venv}/bin/activate
  python -m dpeval.train -m num_devices=1,2 batch=16,32     your own sweep
  bash scripts/run_cpu_experiments.sh                       the standard CPU study
  bash scripts/run_gpu_experiments.sh                       the standard GPU study
END
