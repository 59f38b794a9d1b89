.PHONY: check test bench docs

check:
	ruff check . && ruff format --check . && mypy && lint-imports

test:
	pytest -n 2

bench:
	python benchmarks/overhead.py && python benchmarks/support.py && python benchmarks/cost_model.py

docs:
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict
