.PHONY: check format lint types test slow

check: lint types test  ## what a change must pass

format:  ## rewrite in the house format
	ruff format .
	ruff check --fix .

lint:
	ruff format --check .
	ruff check .

types:
	mypy

test:  ## the default run, under five minutes on two cores
	python -m pytest

slow:  ## everything, with full-width networks
	python -m pytest -m ""
