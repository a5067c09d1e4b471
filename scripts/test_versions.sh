#!/usr/bin/env bash
# Run the unit tier and the forecasts' process on the oldest versions that pyproject.toml allows,
# and on the newest.
#   bash scripts/test_versions.sh oldest        only one of the two
# The environments (6 GB each) stay in DPEVAL_VERSIONS, by default ~/.cache/dpeval-ci, where only
# what has changed since is installed again. Without a Python 3.13, the newest run in a Debian 13
# below a chroot, which needs root on Debian.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${DPEVAL_VERSIONS:-$HOME/.cache/dpeval-ci}
export UV_CACHE_DIR=$cache/wheels UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
mkdir -p "$cache"
tested=("$@")
[ ${#tested[@]} -gt 0 ] || tested=(oldest newest)

# The uv of PyPI: its resolver finds the lowest versions that pyproject.toml allows.
uv=$cache/uv/bin/uv
[ -x "$uv" ] || { python3 -m venv "$cache/uv" && "$cache/uv/bin/pip" install --quiet uv; }

# Print the path of Python $1. Debian's comes first: Debian 12 has 3.11.2, an early release.
find_python() {
  local path
  for path in "/usr/bin/python$1" "$HOME/.pyenv/versions/$1".*/bin/python "$("$uv" python find "$1" 2>/dev/null)"; do
    if [ -x "$path" ] && "$path" -c 'import ensurepip, ssl' 2>/dev/null; then
      echo "$path"
      return
    fi
  done
  return 1
}

# Run a command in Debian 13, which sees this folder, the cache and the kernel's file systems.
in_debian13() {
  local root=$cache/debian13
  if [ ! -e "$root/.complete" ]; then
    command -v debootstrap >/dev/null || {
      apt-get update -qq && apt-get install -y -qq --no-install-recommends debootstrap >/dev/null
    }
    rm -rf "$root"
    debootstrap --variant=minbase --include=python3-venv,ca-certificates,git trixie "$root" >/dev/null
    touch "$root/.complete"
  fi
  # The mounts belong to a namespace that ends with the command.
  # shellcheck disable=SC2016
  unshare --mount bash -euc '
    root=$1 here=$2 cache=$3
    shift 3
    for path in /proc /sys /dev /etc/ssl "$here" "$cache"; do
      mkdir -p "$root$path"
      mount --rbind "$path" "$root$path"
    done
    cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
    exec chroot "$root" /usr/bin/env --chdir="$here" "$@"
  ' _ "$root" "$PWD" "$cache" "$@"
}

# Install into the environment $1, with Python $2, what uv's resolution $3 finds; test there.
# Further arguments are the command that runs all this in another root.
unit_tier() {
  local venv=$cache/$1 python=$2 resolution=$3
  shift 3
  "$@" "$uv" venv --quiet --allow-existing --python "$python" "$venv" &&
    "$@" "$uv" pip compile --quiet --python "$venv/bin/python" --resolution "$resolution" \
      --extra dev pyproject.toml --output-file "$venv/requirements.txt" --upgrade &&
    "$@" "$uv" pip sync --quiet --python "$venv/bin/python" "$venv/requirements.txt" &&
    "$@" "$uv" pip install --quiet --python "$venv/bin/python" --no-deps --editable . &&
    "$@" "$venv/bin/python" -m pytest -q -n 2 --dist loadfile -p no:cacheprovider \
      tests/unit tests/multiprocess/test_forecast_process.py
}

lines=() failed=()
for name in "${tested[@]}"; do
  begin=$SECONDS
  case $name in
    oldest) version=3.11 resolution=lowest-direct ;;
    newest) version=3.13 resolution=highest ;;
    *)
      echo "unknown argument '$name'; give oldest, newest or nothing" >&2
      exit 2
      ;;
  esac
  result=passed prefix=() venv=$cache/$name
  python=$(find_python $version) || {
    if [ $version != 3.13 ]; then
      echo "there is no Python $version with venv on this machine; install it" >&2
      exit 2
    fi
    python=/usr/bin/python3.13 prefix=(in_debian13) venv=$cache/$name-debian13
  }
  unit_tier "${venv##*/}" "$python" $resolution "${prefix[@]}" || result=failed failed+=("$name")
  # What was tested; nothing if it could not even be installed.
  pins=$("${prefix[@]}" "$venv/bin/python" --version &&
    grep -E '^(torch|torchvision|numpy|pandas|pydantic)==' "$venv/requirements.txt" | tr '\n' ' ') || true
  took=$((SECONDS - begin))
  lines+=("$(printf '%-16s %3d min %02d s  %s: %s' "unit on $name" $((took / 60)) $((took % 60)) \
    "$result" "${pins//$'\n'/, }")")
done
"$uv" cache clean --quiet  # the environments hold what they need
printf '%s\n' "${lines[@]}"
[ ${#failed[@]} -eq 0 ] || exit 1
