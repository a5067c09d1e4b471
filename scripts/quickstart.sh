#!/usr/bin/env bash
# From a fresh clone to a first study of this machine: set up, measure, analyse, list the results.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
"${DPEVAL_VENV:-.venv}/bin/python" -m dpeval.train experiment=quickstart "$@"
latest=$(ls -d outputs/quickstart/*/ | tail -n 1)
cat <<END

Results
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
