#!/usr/bin/env bash
# Runs a benchmark through the product: in a project with the default answers (SOURCE: another source), in its own environment.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
baked=$root/build/bench/baked
script=$root/$1
shift
rm -rf "$baked" && mkdir -p "$baked"
HOME=$baked "$root/.venv/bin/cookiecutter" --no-input --default-config --output-dir "$baked" "$root" "source=${SOURCE:-csv}"
cd "$baked"/*/
export UV=$root/.venv/bin/uv PYTHONPATH=src
ops/setup.sh
exec .venv/bin/python "$script" "$@"
