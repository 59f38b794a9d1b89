.PHONY: check test test-slow bench docs

check:
	ruff check . && ruff format --check . && codespell && mypy && lint-imports && python benchmarks/check.py

test:
	pytest -n 2

test-slow:
	pytest -n 2 -m slow

bench:
	python benchmarks/overhead.py && python benchmarks/support.py && python benchmarks/cost_model.py

docs:
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict
