#!/usr/bin/env bash
# Builds the Bento, then the two images, and writes build/image.json, which `make up` and `make deploy` read, and what is in each image:
# build/sbom.json and build/sbom-loader.json.
# PUSH=1 also pushes them (REGISTRY_USER and REGISTRY_PASSWORD, if set, log in) and names them by digest from then on.
. "$(dirname "$0")/lib.sh"
need_docker

make --no-print-directory build >&2
bento=.local/bentoml/bentos/$service
bento=$bento/$(cat "$bento/latest")
facts=$(.venv/bin/python - <<'EOP'
import json
from pathlib import Path
registered, card = (json.loads(Path("build/model", name).read_text("utf-8")) for name in ("registry.json", "card.json"))
other = Path("build/model/challenger/registry.json")
print(registered["digest"], card["trained_as_of"]["data_version"],
      json.loads(other.read_text("utf-8"))["digest"] if other.is_file() else "")
EOP
)
read -r model data challenger <<<"$facts"
# A commit only when this folder is itself the top of a repository, not merely inside one.
revision=uncommitted dirty='' time=0
if [ "$(git rev-parse --show-toplevel 2>/dev/null || true)" = "$(pwd -P)" ] && commit=$(git rev-parse --verify --quiet HEAD); then
  [ -z "$(git status --porcelain)" ] || dirty=-dirty  # new files too: the images take them along
  revision=$commit$dirty
  time=$(git log -1 --format=%ct)
fi
short=${model#sha256:} beside=${challenger#sha256:}
tag=${revision:0:12}$dirty-${short:0:12}${beside:+-${beside:0:12}}

# The same inputs give the same files; BuildKit from 0.13 on takes their times from the commit, too, so that the digest is the same.
build() {
  docker build --quiet --output type=docker,rewrite-timestamp=true --build-arg "SOURCE_DATE_EPOCH=$time" --build-arg "PYTHON_IMAGE=$PYTHON_IMAGE" \
    --build-arg "REVISION=$revision" "$@" >/dev/null || fail "docker build failed on the base image $PYTHON_IMAGE (PYTHON_IMAGE names another)"
}
say "$repository:$tag and $repository-loader:$tag on $PYTHON_IMAGE"
build --build-arg "MODEL_DIGEST=$model" --build-arg "DATA_VERSION=$data" --file images/service.Dockerfile --tag "$repository:$tag" "$bento"
build --file images/loader.Dockerfile --tag "$repository-loader:$tag" .

if [ -n "${PUSH:-}" ]; then
  if [ -n "${REGISTRY_USER:-}" ]; then
    printf '%s' "${REGISTRY_PASSWORD:-}" | docker login --username "$REGISTRY_USER" --password-stdin "${repository%%/*}" >/dev/null 2>"$work/error" ||
      fail "the registry ${repository%%/*} refuses the login of $REGISTRY_USER: $(tail -n 1 "$work/error")"
  fi
  for name in "$repository" "$repository-loader"; do
    docker push --quiet "$name:$tag" >/dev/null 2>"$work/error" ||
      fail "cannot push $name:$tag ([image] in service.toml names the registry): $(tail -n 1 "$work/error")"
  done
fi

reference() {                           # repository@sha256:... once a registry gave a digest, else the engine's own id
  docker image inspect -f '{{range .RepoDigests}}{{println .}}{{end}}{{.Id}}' "$1:$tag" | grep -e "^${1#docker.io/}@" -e '^sha256:' | head -n 1
}
mkdir -p build
cat >build/image.json <<JSON
{
  "service": {"tag": "$repository:$tag", "ref": "$(reference "$repository")"},
  "loader": {"tag": "$repository-loader:$tag", "ref": "$(reference "$repository-loader")"},
  "model": "$model",
  "revision": "$revision"
}
JSON
.venv/bin/python ops/sbom.py "$repository:$tag" build/sbom.json
.venv/bin/python ops/sbom.py "$repository-loader:$tag" build/sbom-loader.json
cat build/image.json
