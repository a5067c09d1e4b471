#!/usr/bin/env bash
# Make .venv beside this folder and install dpeval into it, with the extras named as arguments.
# PYTHON chooses the interpreter, DPEVAL_VENV another place. Does nothing where all is there.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${DPEVAL_VENV:-.venv}
extras=${1:-}
stamp="$venv/.dpeval-${extras:-base}-$(cksum <pyproject.toml | cut -d' ' -f1)"
if [ ! -e "$stamp" ]; then
  python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "dpeval needs Python 3.11 or later; $python is $("$python" --version 2>&1). Set PYTHON to a later one." >&2
    exit 2
  }
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  echo "installing into $venv (torch is large: this takes a few minutes once)"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".${extras:+[$extras]}"
  touch "$stamp"
fi
