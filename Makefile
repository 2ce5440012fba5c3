# Every target works from a fresh copy: the first run makes a virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test browser check style hf-check space-check bench load fuzz mutation

$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.txt
	$(BIN)/pip install --quiet --no-deps -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet -e ".[app,train,evaluate,results,scale,export,dev]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/python app.py

# Two files of tests at a time, the modules' fixtures made once.
test: $(VENV)/installed-dev browser
	$(BIN)/pytest -n 2 --dist loadfile

# The page's tests need a browser. Without one they say so and are skipped.
browser: $(VENV)/installed-dev
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	$(BIN)/playwright install chromium >$(VENV)/browser.log 2>&1 || \
	echo "No browser: install Chromium to test the page too ($(VENV)/browser.log)."

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# transformers' own common test suites on our classes; fetches its source distribution once.
hf-check: $(VENV)/installed-dev
	$(BIN)/pytest tools/hf_check

# The Space as its hardware has it: Python 3.12 and every requirement at its pin, installed by pip, then started and called.
space-check: $(VENV)/installed-dev
	$(BIN)/pytest tests/publishing/test_publish.py -m install

# Every way to run the network; with make bench REFERENCE=path beside a checkout of the reference implementation.
bench: $(VENV)/installed-dev
	$(BIN)/python benchmarks/speed.py $(if $(REFERENCE),--reference $(REFERENCE))

# Every reader on real small files that are cut, swapped and changed; some twenty minutes.
fuzz: $(VENV)/installed-dev
	$(BIN)/python tools/fuzz.py

# Mistakes put into the package, one at a time, a sample of them: make mutation SAMPLE=200 [OF=lvit_hf/io]; hours for all.
mutation: $(VENV)/installed-dev
	$(BIN)/python tools/mutation.py $(if $(OF),--of $(OF)) $(if $(SAMPLE),--sample $(SAMPLE))

# 32 clients at once against app.py on loopback; some minutes.
load: $(VENV)/installed-dev
	$(BIN)/python benchmarks/load.py
