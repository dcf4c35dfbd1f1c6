#!/usr/bin/env bash
# Everything that can be said about the files without running them. Every check runs, or those whose names hold the word given; exit 3 when
# one of them found something.
# shellcheck disable=SC2329  # functions are called by name, through `check`
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
found=0
only=${1:-}

check() {                               # check NAME COMMAND...: one line when all is well
  local name=$1
  shift
  case $name in *"$only"*) ;; *) return ;; esac
  if "$@" >"$work/out" 2>&1; then printf 'ok    %s\n' "$name"; else printf 'FOUND %s\n' "$name"; sed 's/^/      /' "$work/out"; found=3; fi
}

stack() {                               # the compose file, with stand-ins for what `make up` sets
  POSTGRES_PASSWORD=x LOADER_PASSWORD=x READER_PASSWORD=x SERVICE_IMAGE=x LOADER_IMAGE=x TLS_DIR=/x STOP_SECONDS=1 ANSWER_SECONDS=1 \
    docker compose -f ops/compose.yaml -f ops/tls.yaml --profile once --profile watch --profile kibana --profile follow config --quiet
}

files() { if [ -e .git ]; then git ls-files -z --cached --others --exclude-standard; else find . -type f -not -path './.*/*' -print0; fi; }
secrets() {                             # names file and line, never the secret itself
  local key='-----BEGIN [A-Z ]*PRIVATE KEY' tokens='AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{22}|glpat-[A-Za-z0-9_-]{20}|xox[abpr]-[A-Za-z0-9-]{10}'
  local url='[a-z]+://[^/@: ]+:[^/@ {}$<]{12,}@' given='_PASSWORD=[^[:space:]"'\''$)]{12,}'
  files | tr '\0' '\n' | grep -E '(^|/)\.env(\.|$)|(^|/)id_(rsa|ecdsa|ed25519)$' | grep -v -E '\.env\.example$' >"$work/names" || true
  files | xargs -0 grep -HInE -e "$key|$tokens|$url|$given" 2>/dev/null | grep -vE '@(127\.0\.0\.1|localhost)[:/]' | cut -d: -f1,2 >>"$work/names" || true
  sed 's/$/: looks like a secret: take it out, and change it where it is used/' "$work/names"
  [ ! -s "$work/names" ]
}

check "ruff: mistakes" ruff check --quiet --output-format concise .
check "ruff: format" ruff format --check --quiet --output-format concise .
check "mypy: types" mypy --no-error-summary
check "shellcheck: scripts" shellcheck --external-sources --source-path=SCRIPTDIR ops/*.sh
check "hadolint: images" hadolint images/service.Dockerfile images/loader.Dockerfile
[ ! -d .github/workflows ] || check "zizmor: workflows" zizmor --offline --persona pedantic --no-progress .github/workflows
if docker compose version >/dev/null 2>&1; then check "compose: stack" stack; else echo "SKIP  compose: stack: needs Docker with its compose plugin"; fi
check "secrets: none in the repository" secrets
exit $found
