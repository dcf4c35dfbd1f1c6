#!/usr/bin/env bash
# up: starts the whole stack with the images of the last `make image`; may be repeated. COMPOSE_PROFILES=watch adds Prometheus and Elasticsearch.
# down: stops and removes it; the database's volume stays, and .env with its passwords.
# deploy: rolls the image out to DEPLOY_HOST: `local` (this machine's engine), ssh://user@host or user@host. Migrations and the model first, then
# new replicas beside the old ones, which go when all new ones are ready. If one never gets ready, only the old ones stay: exit 1.
# A running database and balancer are left as they are; `make up` on the target changes those.
# DEPLOY_KEY and DEPLOY_KNOWN_HOSTS: what a pipeline that has no ssh configuration of its own gives.
. "$(dirname "$0")/lib.sh"

up() {
  images
  port_free
  passwords
  settings
  lock
  start || fail "the stack is up, but it is not ready"
  ask "$(replicas --latest)" http://balancer:8080/v1/forecast >"$work/answer" || fail "the balancer has no forecast to give"
  .venv/bin/python -c 'import json, sys; from model_service.forecasting import table; print(table(json.load(sys.stdin)))' <"$work/answer"
  echo "http://127.0.0.1:$BALANCER_PORT/v1/forecast"
}

down() {
  docker compose --progress quiet stop
  for id in $(docker ps --all --quiet --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME"); do
    docker rm --volumes "$id" >/dev/null  # the unnamed ones
  done
  docker compose --progress quiet down --remove-orphans --rmi local
  say "stopped; the data is in the volume ${COMPOSE_PROJECT_NAME}_database"
}

# The engine that DEPLOY_HOST names; ends here when it names none.
target() {
  case ${DEPLOY_HOST:-} in
    '') say "skipped: DEPLOY_HOST is not set (local, or an ssh address)"; exit 0 ;;
    local) ;;
    ssh://*) export DOCKER_HOST=$DEPLOY_HOST ;;
    *://*) say "DEPLOY_HOST=$DEPLOY_HOST: must be local, user@host or ssh://user@host"; exit 2 ;;
    *) export DOCKER_HOST=ssh://$DEPLOY_HOST ;;
  esac
  if [ -n "${DEPLOY_KEY:-}" ]; then
    eval "$(ssh-agent -s)" >/dev/null
    trap 'finish; kill "$SSH_AGENT_PID"' EXIT
    printf '%s\n' "$DEPLOY_KEY" | ssh-add -q -
    (umask 077 && mkdir -p ~/.ssh && printf '%s\n' "${DEPLOY_KNOWN_HOSTS:-}" >>~/.ssh/known_hosts)
  fi
}

# What answers through the balancer must be what was asked for, whichever replica it comes from.
verify() {
  for _ in 1 2 3 4; do
    as_asked "$(replicas --latest)" http://balancer:8080 || fail "deployed, but $reason"
  done
  say "the balancer answers from $want"
}

deploy() {
  images
  passwords
  settings
  lock
  if [ -z "$(replicas)" ]; then
    say "first deployment"
    port_free
    start || { compose rm --stop --force service >/dev/null; fail "the first deployment never got ready; its replicas are removed"; }
  else
    # shellcheck disable=SC2034  # prepare reads it
    database=--no-recreate
    prepare
    roll
    follow
  fi
  verify
}

# The follower, where there is one or the profile asks for it, on the loader that was just deployed.
follow() {
  case ,${COMPOSE_PROFILES:-}, in *,follow,*) ;; *) [ -n "$(containers follower --all)" ] || return 0 ;; esac
  compose up --detach --no-deps follower >"$work/log" 2>&1 || fail "deployed, but the follower does not start: $(tail -n 3 "$work/log")"
}

case ${1:-} in
  up | down | deploy) verb=$1 ;;
  *) say "up, down or deploy"; exit 2 ;;
esac
[ "$verb" != deploy ] || target
need_docker
"$verb"
