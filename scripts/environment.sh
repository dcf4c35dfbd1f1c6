#!/usr/bin/env bash
# Makes .venv and syncs it with requirements/$1.txt. uv does the work, put into .venv by pip, by its hash.
# PYTHON names the interpreter (default: the first of python3, python3.13, python3.12, python3.11 that is new enough).
set -euo pipefail
cd "$(dirname "$0")/.."
fail() { printf 'onemodel: %s\n' "$*" >&2; exit 2; }
lock=requirements/$1.txt

if [ ! -x .venv/bin/uv ]; then
  python=
  for name in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { python=$name; break; }
  done
  [ -n "$python" ] || fail "needs Python 3.11 or newer, and ${PYTHON:-python3} is not. Install one, or name it: make PYTHON=/path/to/python3.12 ..."
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python has no ensurepip, so it cannot make an environment. Install it (Debian, Ubuntu: apt install python3-venv), or name another: make PYTHON=/path/to/python3.12 ..."
  "$python" -m venv --clear .venv
  awk '/^uv==/ { found = 1 } found { print } found && !/\\$/ { exit }' "$lock" >.venv/uv.txt
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r .venv/uv.txt
fi
.venv/bin/uv pip sync --quiet --python .venv/bin/python --require-hashes "$lock"
rm -f .venv/*.synced
touch ".venv/$1.synced"
# Everything of demo.txt is in test.txt too.
[ "$1" = demo ] || touch .venv/demo.synced
