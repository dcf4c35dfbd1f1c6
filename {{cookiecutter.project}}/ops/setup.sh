#!/usr/bin/env bash
# Makes .venv and syncs it with requirements/dev.txt, and with what single sources need: requirements/SOURCE.txt, locked from SOURCE.in.
# uv does the work: $UV, the one on PATH, or one put into .venv by pip, by its hash.
# `setup.sh lock` then writes requirements/*.txt anew from pyproject.toml's groups and from *.in: dev first, the others inside its versions.
# PYTHON names the interpreter (default: the first of python3, python3.13, python3.12, python3.11 that is new enough).
set -euo pipefail
cd "$(dirname "$0")/.."
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
lock=requirements/dev.txt

python=
for name in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
  "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { python=$name; break; }
done
[ -n "$python" ] || fail "needs Python 3.11 or newer, and ${PYTHON:-python3} is not: install one, or name it: make setup PYTHON=/path/to/python3.12"

uv=${UV:-uv}
if "$uv" --version >/dev/null 2>&1; then
  [ -x .venv/bin/python ] || "$uv" venv --quiet --no-python-downloads --python "$("$python" -c 'import sys; print(sys.executable)')" .venv
elif [ -n "${UV:-}" ]; then
  fail "UV=$UV does not run: name a uv, or unset UV"
else
  uv=.venv/bin/uv
  if ! "$uv" --version >/dev/null 2>&1; then
    "$python" -c 'import ensurepip' 2>/dev/null ||
      fail "$python has no ensurepip, so it cannot make an environment with pip: install it (Debian, Ubuntu: apt install python3-venv), or install uv and run again"
    "$python" -m venv .venv
    awk '/^uv==/ { found = 1 } found { print } found && !/\\$/ { exit }' "$lock" >.venv/uv.txt
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r .venv/uv.txt
  fi
fi
locks=("$lock")
for wanted in requirements/*.in; do
  if [ -e "${wanted%.in}.txt" ]; then
    locks+=("${wanted%.in}.txt")
  elif [ -e "$wanted" ] && [ "${1:-}" != lock ]; then
    fail "$wanted has no lock: run \`make lock\`, then again"
  fi
done
"$uv" pip sync --quiet --python .venv/bin/python --require-hashes "${locks[@]}"
touch .venv/synced

[ "${1:-}" = lock ] || exit 0
compile() { "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade "$@"; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
compile --group dev -o "$work/dev.txt"
for group in loader train serve; do compile --group "$group" -c "$work/dev.txt" -o "$work/$group.txt"; done
# Of a source's packages those that every loader has are not named again: one image installs both locks.
had=()
while read -r name; do had+=(--no-emit-package "$name"); done < <(sed -n 's/^\([a-z0-9._-]*\)==.*/\1/p' "$work/loader.txt")
for wanted in requirements/*.in; do
  [ ! -e "$wanted" ] || compile "$wanted" "${had[@]}" -c "$work/dev.txt" -o "$work/$(basename "$wanted" .in).txt"
done
cp "$work"/*.txt requirements/
