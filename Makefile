# The template's own commands. Those of a project are in its own Makefile.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv/bin/python
UV_COMPILE := .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade

# Without its bytecode kept, every command compiles all of its packages anew: seconds each time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test bench bench-bake bench-crash bench-faults bench-gate bench-image bench-kafka bench-load bench-asof bench-replica bench-serve bench-soak bench-train soak lock clean

help:  ## This list
	@sed -n 's/^\([a-z-]*\):.*## */\1|/p' Makefile | while IFS='|' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

demo:  ## From default answers to a served forecast; stays until Ctrl-C (ONCE=1: stops everything and exits)
	@started=$$($(PYTHON) -c 'import time; print(time.time())') && $(MAKE) --silent --no-print-directory .venv/demo.synced && \
	  exec env DEMO_STARTED=$$started ONCE="$(ONCE)" $(VENV) scripts/demo.py

test: .venv/test.synced  ## All tests that this machine can run, and a list of what was left out (ARGS="-k bake")
	@$(VENV) -m pytest $(ARGS)

bench: bench-bake bench-load bench-asof bench-train bench-gate bench-serve bench-faults bench-soak bench-image bench-replica bench-kafka bench-crash  ## Every benchmark

bench-bake: .venv/demo.synced  ## Time of a bake against plain cookiecutter with empty hooks; writes build/bench/bake.json
	@$(VENV) benchmarks/bake.py

bench-load: .venv/demo.synced  ## Loading against binary COPY and dlt; writes build/bench/load.json (ROWS, HELD, PAIRS; ARGS=--quick)
	@benchmarks/in_project.sh benchmarks/load.py $(ARGS)

bench-asof: .venv/demo.synced  ## Reads by two clocks against current values; writes build/bench/asof.json (HELD; ARGS=--quick)
	@benchmarks/in_project.sh benchmarks/asof.py $(ARGS)

bench-train: .venv/demo.synced  ## Memory of training with 1,000 series against 100; writes build/bench/train.json (ARGS=--quick)
	@benchmarks/in_project.sh benchmarks/train.py $(ARGS)

bench-gate: .venv/demo.synced  ## Planted faults that the gate must name, and clean retrains; writes build/bench/gate.json (ARGS=--quick)
	@benchmarks/in_project.sh benchmarks/gate.py $(ARGS)

bench-serve: .venv/demo.synced  ## Requests a second and p99 against bare FastAPI and ONNX Runtime, and others; needs wrk (PAIRS, SECONDS, TURNS=0)
	@benchmarks/in_project.sh benchmarks/serve.py

bench-faults: .venv/demo.synced  ## 10,000 requests under faults, 10,000 by Schemathesis; writes build/bench/faults.json (FAULTS, CASES)
	@benchmarks/in_project.sh benchmarks/serve_faults.py

bench-soak: .venv/demo.synced  ## As soak, 15 minutes
	@MINUTES=$${MINUTES:-15} benchmarks/in_project.sh benchmarks/soak.py

soak: .venv/demo.synced  ## Memory at half of what the service takes, for two hours; writes build/bench/soak.json (MINUTES)
	@benchmarks/in_project.sh benchmarks/soak.py

bench-image: .venv/demo.synced  ## Size and cold start of the image against a bare one's; writes build/bench/image.json (RUNS, CONTAINERIZE=0)
	@benchmarks/in_project.sh benchmarks/image.py

bench-replica: .venv/demo.synced  ## Replicas shot down behind the balancer under load: what callers see, how soon one is back (KILLS)
	@benchmarks/in_project.sh benchmarks/replica.py

bench-kafka: .venv/demo.synced  ## A million messages while loaders, broker and claims are shot down, and the delay (MESSAGES, KILLS, LIVE)
	@SOURCE=kafka benchmarks/in_project.sh benchmarks/kafka.py

bench-crash: .venv/demo.synced  ## 1,000 kills of loader and database, and other faults, in every phase of a load (KILLS=60: fewer)
	@$(VENV) benchmarks/crash.py

lock: .venv/demo.synced  ## Write requirements/*.txt anew from pyproject.toml
	@$(UV_COMPILE) --group test -o requirements/test.txt
	@$(UV_COMPILE) --group demo -c requirements/test.txt -o requirements/demo.txt
	@$(UV_COMPILE) --group published -c '{{cookiecutter.project}}/requirements/dev.txt' -o requirements/published.txt
	@for other in bentoml mlserver mlflow; do $(UV_COMPILE) --group $$other -o requirements/$$other.txt || exit 1; done

clean:  ## Remove build/ and .venv
	rm -rf build .venv

.venv/%.synced: requirements/%.txt
	@PYTHON="$(PYTHON)" scripts/environment.sh $*
