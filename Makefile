# make demo   a small crawl through the whole pipeline, run by Airflow; Ctrl-C ends it
#             SOURCE=CC-MAIN-2026-05 SHARDS=2 RECIPE=laion-5b-en   real archives instead
#             FLEET=1  on Celery workers with PostgreSQL, Redis and S3, each from a package of the index
#             KEEP=0   exit with the run's status;   VAR=folder   where everything is written
# make test   the tests;   make check   lint and types
# Both make .venv when it is missing, half-installed or out of date.

PYTHON ?= python3
KEEP ?= 1
FLEET ?= 0
VAR ?= var
BIN := .venv/bin
# packages are installed without bytecode: where images forbid to write it, every process would compile them again
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check docs venv clean

demo: venv
	@$(BIN)/python -m curation.demo.run --keep "$(KEEP)" --var "$(VAR)" --fleet "$(FLEET)" \
		--source "$(SOURCE)" --shards "$(SHARDS)" --recipe "$(RECIPE)"

test: venv
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(TESTS)

check: venv
	@$(BIN)/ruff check && $(BIN)/ruff format --check && $(BIN)/mypy

docs: venv
	@$(BIN)/python scripts/dag_docs.py && $(BIN)/python scripts/column_docs.py

venv:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: on Debian and Ubuntu: apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) scripts/venv.py

clean:
	rm -rf var
