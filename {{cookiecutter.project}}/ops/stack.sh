#!/usr/bin/env bash
# up: starts the whole stack with the images of the last `make image`; may be repeated. COMPOSE_PROFILES=watch adds Prometheus and Elasticsearch.
# down: stops and removes it; the database's volume stays, and .env with its passwords.
. "$(dirname "$0")/lib.sh"
need_docker
case ${1:-} in
  up)
    images
    port_free
    passwords
    lock
    start || fail "the stack is up, but it is not ready"
    ask "$(replicas --latest)" http://balancer:8080/v1/forecast >"$work/answer" || fail "the balancer has no forecast to give"
    .venv/bin/python -c 'import json, sys; from model_service.forecasting import table; print(table(json.load(sys.stdin)))' <"$work/answer"
    echo "http://127.0.0.1:$BALANCER_PORT/v1/forecast"
    ;;
  down)
    docker compose --progress quiet stop
    for id in $(docker ps --all --quiet --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME"); do
      docker rm --volumes "$id" >/dev/null  # the unnamed ones
    done
    docker compose --progress quiet down --remove-orphans --rmi local
    say "stopped; the data is in the volume ${COMPOSE_PROJECT_NAME}_database"
    ;;
  *) say "up or down"; exit 2 ;;
esac
