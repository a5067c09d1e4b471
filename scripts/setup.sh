#!/usr/bin/env bash
# Create .venv in the repository and install dpeval into it, with the extras given as argument.
# PYTHON selects the interpreter, DPEVAL_VENV another folder. Does nothing if it is up to date.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${DPEVAL_VENV:-.venv}
extras=${1:-}
stamp="$venv/.dpeval-${extras:-base}-$(cksum <pyproject.toml | cut -d' ' -f1)"
if [ ! -e "$stamp" ]; then
  python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "dpeval needs Python 3.11 or later, but $python is $("$python" --version 2>&1); set PYTHON to a later one" >&2
    exit 2
  }
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  echo "installing into $venv (takes a few minutes once: torch is large)"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".${extras:+[$extras]}"
  touch "$stamp"
fi
