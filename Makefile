# Every target sets up what it needs: .venv with the pinned versions, once.
# demo, test and check are the three that matter; the others serve maintainers.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FILES := backend/src test docs examples vendor

.PHONY: demo demo-real test check fmt docs tiny-model test-oldest clean

demo: $(STAMP)
	$(BIN)/hildanext demo

# A real model: fetches SmolLM2-135M-Instruct, puts the adapters of models/smollm2-135m-diffusion over it, and compares the two.
REAL := runs/demo-real
demo-real: $(STAMP)
	$(BIN)/hildanext fetch smollm2-135m
	$(BIN)/hildanext answer --write-prompts 10 --held-out --out $(REAL)/prompts.jsonl
	$(BIN)/hildanext answer --model models/smollm2-135m --prompts $(REAL)/prompts.jsonl --out $(REAL)/answers.jsonl --max-new-tokens 96 --unfinished keep
	$(BIN)/hildanext compare models/smollm2-135m models/smollm2-135m-diffusion --data $(REAL)/answers.jsonl --set decode.max_new_tokens=96
	$(BIN)/hildanext generate --chat --model models/smollm2-135m-diffusion --prompt "Give me three facts about the moon." --stream

test: $(STAMP)
	$(BIN)/python test/run_tests.py

check: $(STAMP)
	$(BIN)/ruff format --config backend/pyproject.toml --check $(FILES)
	$(BIN)/ruff check --config backend/pyproject.toml $(FILES)
	$(BIN)/mypy --config-file backend/pyproject.toml backend/src/hildanext
	$(BIN)/python test/run_tests.py test/guards -m "not slow"

fmt: $(STAMP)
	$(BIN)/ruff format --config backend/pyproject.toml $(FILES)
	$(BIN)/ruff check --config backend/pyproject.toml --fix $(FILES)

$(STAMP): backend/pyproject.toml backend/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint backend/constraints.txt --editable "backend[dev]"
	touch $(STAMP)

docs: $(STAMP)
	$(BIN)/python docs/drawings.py

# Retrains the bundled pair from seed, somewhat over two hours on one core; see backend/src/hildanext/tiny/README.md. The last
# two lines replace the bundled weights; `make tiny-model TINY=folder` writes the pair elsewhere. Move the runs/tiny-* of an
# earlier retraining away first: a directory with checkpoints is not begun in again.
TINY := backend/src/hildanext/tiny
tiny-model: $(STAMP)
	$(BIN)/hildanext prepare-data --config runs/configs/tiny_data.json
	$(BIN)/hildanext tokenize --config runs/configs/tiny_data.json
	$(BIN)/hildanext convert-wsd --config runs/configs/tiny_parent.json --run-dir runs/tiny-parent
	$(BIN)/hildanext convert-wsd --config runs/configs/tiny_parent_2.json --run-dir runs/tiny-parent-2
	$(BIN)/hildanext convert-wsd --config runs/configs/tiny_child.json --run-dir runs/tiny-child
	$(BIN)/hildanext convert-wsd --config runs/configs/tiny_child_2.json --run-dir runs/tiny-child-2
	$(BIN)/hildanext convert-wsd --config runs/configs/tiny_child_3.json --run-dir runs/tiny-child-3
	$(BIN)/hildanext sft --config runs/configs/tiny_sft.json --run-dir runs/tiny-sft
	$(BIN)/hildanext merge-checkpoints runs/tiny-sft --members step-000400 runs/tiny-child-3/model
	$(BIN)/hildanext export --model runs/tiny-parent-2/model --output $(TINY)/parent --set export.format.dtype=float16
	$(BIN)/hildanext export --config runs/configs/tiny_export.json --output $(TINY)/child

OLDEST := .venv-oldest
# The lowest transformers that backend/pyproject.toml allows, on the parts that touch it.
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python test/run_tests.py test/core test/models test/decoding

$(OLDEST)/.installed: backend/pyproject.toml backend/constraints.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	grep -v -E '^(transformers|huggingface-hub|huggingface_hub|tokenizers|peft|lm-eval|lm_eval|accelerate)==' backend/constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --constraint $(OLDEST)/constraints.txt "transformers==5.6.*" --editable backend pytest hypothesis scipy peft
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) build dist backend/build
