# What the scripts beside it share: settings, Docker, passwords, waiting. Sourced by bash, never run.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=$(mktemp -d)
trap 'finish' EXIT
trap 'exit 130' INT TERM
exec 3>&2
locked='' before=''
finish() {
  trap '' INT TERM                      # one is enough: what follows must not be cut
  exec 2>&3                             # it may come while a function is called with its errors put elsewhere
  [ -z "$before" ] || undo || true
  [ -z "$locked" ] || docker rm --force "$locked" >/dev/null 2>&1 || true
  rm -rf "$work"
}
verb=$(basename "$0" .sh)
say() { printf '%s: %s\n' "$verb" "$*" >&2; }
fail() { say "$*"; exit 1; }

if [ -f .env ]; then                    # what the environment leaves open
  while IFS= read -r line || [ -n "$line" ]; do
    line=${line%$'\r'}
    key=${line%%=*}
    case $line in '' | '#'*) continue ;; esac
    case $key in '' | "$line" | *[!A-Za-z0-9_]*) fail ".env: a line begins with '$key': write NAME=value, without spaces or 'export'" ;; esac
    value=${line#*=}
    case $value in '"'*'"' | "'"*"'") value=${value#?} value=${value%?} ;; esac
    [ -n "${!key+set}" ] || export "$key=$value"
  done <.env
fi
contract=$(PYTHONPATH=src .venv/bin/python - <<'EOP'
import sys
from math import ceil
from pathlib import Path
from model_service import contract
from model_service.errors import UsageError
try:
    made = contract.load(Path("service.toml"))
except UsageError as error:
    sys.exit(str(error))
serving = made.serving
print(made.service.name, made.image.repository, made.image.base, ceil(serving.stop_seconds) + 1, ceil(serving.timeout_seconds) + 5)
EOP
) || fail "service.toml: the lines above say what is wrong"
# STOP_SECONDS until a replica is killed that was told to stop; ANSWER_SECONDS that the balancer waits: both are more than a replica takes.
# shellcheck disable=SC2034  # image.sh names images by it
read -r service repository base STOP_SECONDS ANSWER_SECONDS <<<"$contract"
export STOP_SECONDS ANSWER_SECONDS
export COMPOSE_PROJECT_NAME=${COMPOSE_PROJECT_NAME:-$service} BALANCER_PORT=${BALANCER_PORT:-8080} PYTHON_IMAGE=${PYTHON_IMAGE:-$base}
export DOCKER_BUILDKIT=1 BUILDKIT_PROGRESS=quiet

compose() { docker compose --progress quiet -f ops/compose.yaml ${TLS_DIR:+-f ops/tls.yaml} "$@"; }

need_docker() {
  command -v docker >/dev/null 2>&1 ||
    fail "needs Docker: there is no command 'docker'. Install Docker Engine or Docker Desktop; load, train, build and serve work without it"
  docker version --format '{{.Server.Version}}' >/dev/null 2>"$work/error" ||
    fail "needs Docker: its engine${DOCKER_HOST:+ at $DOCKER_HOST} does not answer: $(grep . "$work/error" | tail -n 1)"
  docker compose version >/dev/null 2>&1 || fail "needs Docker: its compose plugin is not there: install docker-compose-plugin"
}

# The images to run: $SERVICE_IMAGE and $LOADER_IMAGE, or what the last `make image` wrote; by digest where a registry gave one.
images() {
  if [ -z "${SERVICE_IMAGE:-}" ] || [ -z "${LOADER_IMAGE:-}" ]; then
    [ -f build/image.json ] || fail "no image yet (build/image.json): run make image"
    SERVICE_IMAGE=${SERVICE_IMAGE:-$(built service)} LOADER_IMAGE=${LOADER_IMAGE:-$(built loader)}
  fi
  for image in "$SERVICE_IMAGE" "$LOADER_IMAGE"; do
    docker image inspect "$image" >/dev/null 2>&1 || docker pull --quiet "$image" >/dev/null 2>"$work/error" ||
      fail "the image $image is neither on this engine nor in a registry: run make image (PUSH=1 for another machine): $(tail -n 1 "$work/error")"
  done
  IMAGE_DIGEST=$(digest_of "$SERVICE_IMAGE")
  export SERVICE_IMAGE LOADER_IMAGE IMAGE_DIGEST
}
built() { .venv/bin/python -c 'import json, sys; print(json.load(open("build/image.json"))[sys.argv[1]]["ref"])' "$1"; }
digest_of() { case $1 in *@sha256:*) echo "${1##*@}" ;; *) docker image inspect -f '{{.Id}}' "$1" ;; esac }
model_of() { docker image inspect -f '{{index .Config.Labels "model.digest"}}' "$1"; }

# Passwords: of the target's own database, else of the environment or .env, else new ones for .env. Never an argument of a process.
passwords() {
  local database key value
  database=$(containers database --all)
  for key in POSTGRES_PASSWORD LOADER_PASSWORD READER_PASSWORD; do
    value=
    [ -z "$database" ] || value=$(setting "$database" "$key")
    [ -n "$value" ] || value=${!key:-}
    if [ -z "$value" ]; then
      value=$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n')
      [ ! -s .env ] || [ -z "$(tail -c 1 .env)" ] || echo >>.env
      (umask 077 && echo "$key=$value" >>.env)
    fi
    export "$key=$value"
  done
  [ ! -f .env ] || chmod 600 .env
}

setting() { docker inspect -f '{{range .Config.Env}}{{println .}}{{end}}' "$1" | sed -n "s/^$2=//p"; }

# What the environment leaves open stays as it runs, so that an `up` or a deployment from elsewhere takes away neither keys, nor the audit trail,
# nor the port for other machines. `none` takes away: API_KEYS=none, ELASTICSEARCH_URL=none, TLS_DIR=none, COMPOSE_PROFILES=none.
settings() {
  local replica balancer key part
  replica=$(replicas --latest) balancer=$(containers balancer)
  for key in API_KEYS ELASTICSEARCH_URL LOG_LEVEL; do
    [ -n "${!key:-}" ] || [ -z "$replica" ] || export "$key=$(setting "$replica" "$key")"
  done
  if [ -z "${TLS_DIR:-}" ] && [ -n "$balancer" ]; then
    TLS_DIR=$(docker inspect -f '{{range .Mounts}}{{if eq .Destination "/tls"}}{{.Source}}{{end}}{{end}}' "$balancer")
    [ -z "$TLS_DIR" ] || TLS_PORT=${TLS_PORT:-$(docker port "$balancer" 8443 | sed -n '1s/.*://p')}
    export TLS_DIR TLS_PORT=${TLS_PORT:-}
  fi
  if [ -z "${COMPOSE_PROFILES:-}" ]; then
    for part in prometheus:watch kibana:kibana follower:follow; do
      [ -z "$(containers "${part%:*}")" ] || export COMPOSE_PROFILES="${COMPOSE_PROFILES:+$COMPOSE_PROFILES,}${part#*:}"
    done
  fi
  for part in $(echo "${COMPOSE_PROFILES:-}" | tr , ' '); do
    case $part in watch | kibana | follow | none) ;; *) fail "COMPOSE_PROFILES names '$part': give watch, kibana, follow, with commas between, or none" ;; esac
  done
  case ,${COMPOSE_PROFILES:-}, in *,watch,*) export ELASTICSEARCH_URL=http://elasticsearch:9200 ;; esac
  for key in API_KEYS ELASTICSEARCH_URL LOG_LEVEL TLS_DIR TLS_PORT COMPOSE_PROFILES; do  # to compose, empty is not the same as unset
    case ${!key:-} in '' | none) unset "$key" ;; esac
  done
}

# One at a time on a target: a container of a fixed name is the lock; it ends by itself if its owner is killed.
lock() {
  local name=$COMPOSE_PROJECT_NAME-rollout
  docker run --detach --rm --name "$name" --network none --entrypoint sleep "$SERVICE_IMAGE" 900 >/dev/null 2>"$work/error" || {
    docker inspect "$name" >/dev/null 2>&1 || fail "cannot start a container: $(tail -n 1 "$work/error")"
    fail "another up or deploy is at work on this target: wait for it, or, if it is dead: docker rm -f $name"
  }
  locked=$name
}

once() { compose run --rm -T --quiet-pull "$@" </dev/null; }

# The database: up, its logins, its tables, its data, and the image's model in its registry. With database=--no-recreate a running one is left as it is.
# Callers may test it with `||`, where bash stops no function at a failing line: so every line says itself what its failure means.
prepare() {
  say "database, migrations"
  compose up --detach --wait "${database:---build}" database >"$work/log" 2>&1 || fail "the database does not start: $(tail -n 3 "$work/log")"
  logins || fail "the database's logins could not be made"
  once migrate || fail "the migration failed; nothing else was touched"
  say "data"
  once loader || fail "the load failed; the replicas were not touched"
  say "the image's model into the registry, and its forecast"
  before=$(replicas)
  adopt || fail "the image's model could not be imported; the replicas were not touched"
}
# Roles and logins, with the passwords of the database's environment: after a `down`, those of .env.
# \getenv keeps passwords out of the process list, the first lines out of the server's log.
logins() {
  compose exec -T database psql -v ON_ERROR_STOP=1 -qX -U postgres -d model <<'SQL'
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
SET log_min_duration_statement = -1;
SET client_min_messages = warning;
\getenv postgres POSTGRES_PASSWORD
\getenv loader LOADER_PASSWORD
\getenv reader READER_PASSWORD
SELECT format('CREATE ROLE %I NOLOGIN', role) FROM unnest(ARRAY['model_owner', 'model_loader', 'model_reader']) AS role
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) \gexec
SELECT format('CREATE ROLE %I LOGIN', login) FROM unnest(ARRAY['loader', 'reader']) AS login
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = login) \gexec
GRANT model_loader, model_reader TO loader;
GRANT model_reader TO reader;
ALTER ROLE postgres PASSWORD :'postgres';
ALTER ROLE loader PASSWORD :'loader';
ALTER ROLE reader PASSWORD :'reader';
SQL
}
adopt() {
  once import python -m model_service promote --artifact /app/model --reason "$verb" &&
    once import python -m model_service forecast --record >/dev/null
}

# Everything, from nothing or from whatever runs.
start() {
  local id
  { compose build balancer && once balancer haproxy -c -f /usr/local/etc/haproxy/haproxy.cfg; } >"$work/log" 2>&1 ||
    fail "the balancer would not start with ops/haproxy.cfg${TLS_DIR:+ and TLS_DIR=$TLS_DIR}; nothing was touched: $(tail -n 3 "$work/log")"
  prepare
  case ,${COMPOSE_PROFILES:-}, in *,watch,*)
    say "telemetry"
    compose up --detach --wait elasticsearch >"$work/log" 2>&1 || fail "Elasticsearch does not start: $(tail -n 3 "$work/log")"
    once service python -m model_service telemetry install || fail "Elasticsearch does not take the index template" ;;
  esac
  say "replicas and balancer"
  [ -z "$before" ] || roll
  compose up --detach --build --remove-orphans >"$work/log" 2>&1 || fail "the stack does not start: $(tail -n 3 "$work/log")"
  for id in $(replicas --all); do
    wait_ready "$id" || { last_words "$id"; return 1; }
  done
}

port_free() {
  { [ "$BALANCER_PORT" -gt 0 ] && [ "$BALANCER_PORT" -lt 65536 ]; } 2>/dev/null || fail "BALANCER_PORT is '$BALANCER_PORT': give a number from 1 to 65535"
  case ${DOCKER_HOST:-unix:} in unix:*) ;; *) return ;; esac
  local balancer
  balancer=$(containers balancer)
  [ -n "$balancer" ] && docker port "$balancer" 8080 2>/dev/null | grep -q ":$BALANCER_PORT\$" && return
  ! (exec 3<>"/dev/tcp/127.0.0.1/$BALANCER_PORT") 2>/dev/null ||
    fail "port $BALANCER_PORT on 127.0.0.1 is taken: stop what listens there, or name another one: BALANCER_PORT=8081"
}

# containers SERVICE [OPTION...]: ids of the stack's containers of that service, the newest first.
containers() {
  local of=$1
  shift
  docker ps --quiet --no-trunc "$@" --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" \
    --filter "label=com.docker.compose.service=$of" --filter label=com.docker.compose.oneoff=False
}
replicas() { containers service "$@"; }

# ask CONTAINER URL: what it answers to the container (so it works on a remote engine too), which shows one of its own API keys, where it has any;
# fails on any status but 2xx, and says why.
ask() { docker exec "$1" python -c "$asking" "$2"; }
asking='
import os, sys, urllib.error, urllib.request
key = os.environ.get("API_KEYS", "").split(",")[0].partition("=")[2].strip()
try:
    request = urllib.request.Request(sys.argv[1], headers={"X-API-Key": key} if key else {})
    sys.stdout.write(urllib.request.urlopen(request, timeout=3).read().decode())
except urllib.error.HTTPError as error:
    sys.exit(f"HTTP {error.code}: {error.read(500).decode()}")
except OSError as error:
    sys.exit(str(error))
'

# as_asked CONTAINER URL: whether /v1/model, asked there, names the image that was asked for and the model in it: $want.
as_asked() {
  local seen
  want="$IMAGE_DIGEST $(model_of "$SERVICE_IMAGE")"
  ask "$1" "$2/v1/model" >"$work/model" 2>"$work/error" || { reason="$2/v1/model does not answer: $(tail -n 1 "$work/error")"; return 1; }
  seen=$(.venv/bin/python -c 'import json, sys; model = json.load(sys.stdin); print(model["image_digest"], model["digest"])' <"$work/model")
  [ "$seen" = "$want" ] || { reason="$want was asked for, but the answer of $2/v1/model comes from $seen"; return 1; }
}

# wait_ready CONTAINER: until it answers /readyz with 200 and the balancer has it in rotation. Fails when it ends, restarts, takes too long, or is
# not what was asked for.
wait_ready() {
  local end=$((SECONDS + ${READY_SECONDS:-60})) address restarts
  restarts=$(docker inspect -f '{{.RestartCount}}' "$1" 2>/dev/null) || true
  while [ $SECONDS -lt $end ]; do
    [ "$(docker inspect -f '{{.State.Running}} {{.RestartCount}}' "$1" 2>/dev/null)" = "true $restarts" ] || { reason="it ended by itself"; return 1; }
    address=$(docker inspect -f "{{(index .NetworkSettings.Networks \"${COMPOSE_PROJECT_NAME}_inside\").IPAddress}}" "$1")
    if ask "$1" http://127.0.0.1:3000/readyz >/dev/null 2>"$work/error" &&
      ask "$1" 'http://balancer:8404/;csv' 2>"$work/error" | grep -q "^replicas,.*,UP,.*[,\"]$address:3000"; then
      as_asked "$1" http://127.0.0.1:3000
      return
    fi
    sleep 0.3
  done
  reason="it was not ready within ${READY_SECONDS:-60} s: $(tail -n 1 "$work/error")"
  return 1
}
last_words() {
  say "replica ${1:0:12}: $reason; the end of its log:"
  docker logs --tail 400 "$1" 2>&1 | grep -v 'GET /readyz' | tail -n 20 | sed 's/^/    /' >&2 || true
}

remove() { docker stop "$1" >/dev/null && docker rm --force "$1" >/dev/null; }

# One more replica, ready.
another() {
  local new
  compose up --detach --no-deps --no-recreate --scale "service=$(($(replicas | wc -l) + 1))" service >"$work/log" 2>&1 ||
    { say "a replica cannot be started: $(tail -n 1 "$work/log")"; return 1; }
  new=$(replicas --latest)
  say "replica ${new:0:12} on $SERVICE_IMAGE"
  wait_ready "$new" || { last_words "$new"; return 1; }
}

# roll: both replicas on $SERVICE_IMAGE with the settings of now, beside the old ones, which leave only when both are ready. Whatever ends it
# before that leaves the old ones alone, see `undo`.
roll() {
  local id wanted good=0 old=''
  for id in $(replicas --all --filter status=exited --filter status=created --filter status=dead); do remove "$id"; done
  wanted=$(compose config --hash service | cut -d ' ' -f 2)
  for id in $before; do
    if [ "$(docker inspect -f '{{index .Config.Labels "com.docker.compose.config-hash"}}' "$id")" = "$wanted" ]; then good=$((good + 1)); else old="$old $id"; fi
  done
  while [ $good -lt 2 ]; do
    another || exit 1
    good=$((good + 1))
  done
  before=
  for id in $old; do remove "$id"; done
}
undo() {
  local id
  # shellcheck disable=SC2086  # ids, to be split; the oldest comes last
  SERVICE_IMAGE=$(docker inspect -f '{{.Config.Image}}' $before | tail -n 1)
  say "back to $SERVICE_IMAGE"
  for id in $(replicas --all); do
    case $before in *$id*) continue ;; esac
    ! ask "$id" http://127.0.0.1:3000/readyz >/dev/null 2>&1 || docker stop "$id" >/dev/null  # drained; nobody asks one that is not ready
    docker rm --force "$id" >/dev/null
  done
  adopt || say "the registry may name the new image's model as champion: run it again"
  say "undone: $SERVICE_IMAGE serves, by the replicas of before"
}
