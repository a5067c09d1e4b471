#!/usr/bin/env bash
# Fill a folder with what a GPU machine without a network lacks to run dpeval.
#   bash benchmarks/gpu/wheelhouse.sh FOLDER [PYTHON_VERSION]
# The machine must have torch, torchvision and the usual scientific packages (pandas, matplotlib,
# scipy, ...); everything else that dpeval imports goes into FOLDER as wheels for Linux on x86-64.
# There:  python3 -m pip install --no-index --no-deps --target SITE FOLDER/*.whl
set -euo pipefail
folder=${1:?usage: wheelhouse.sh FOLDER [PYTHON_VERSION]}
python=${2:-3.12}
packages=(
  hydra-core omegaconf hydra-submitit-launcher submitit submitit-oar cloudpickle
  pydantic pydantic-core annotated-types typing-inspection typing-extensions
  simplejpeg plotly narwhals seaborn nvidia-ml-py psutil filelock rich jinja2
)
here=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$folder"
pip() { "${DPEVAL_VENV:-$here/.venv}/bin/python" -m pip --disable-pip-version-check "$@"; }
# The versions of this environment, which the tests passed with.
pinned=()
for name in "${packages[@]}"; do
  version=$(pip show "$name" | sed -n 's/^Version: //p')
  pinned+=("$name==$version")
done
platforms=()
for glibc in 28 27 24 17 12 5; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
pip -q download --no-deps --only-binary=:all: --python-version "$python" --implementation cp \
  "${platforms[@]}" --platform manylinux2014_x86_64 --platform manylinux1_x86_64 \
  -d "$folder" "${pinned[@]}"
# OmegaConf's parser has no wheel on PyPI: build it, it is pure Python.
antlr=$(pip show antlr4-python3-runtime | sed -n 's/^Version: //p')
pip -q wheel --no-deps --no-binary=:all: -w "$folder" "antlr4-python3-runtime==$antlr"
du -sh "$folder"
