.PHONY: check test bench

check:
	ruff check . && ruff format --check . && mypy

test:
	pytest -n 2

bench:
	python benchmarks/main_job.py
