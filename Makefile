# Every target sets up what it needs: .venv with the pinned versions, once.
# demo, test and check are the three that matter; the others serve maintainers.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FILES := backend/src test docs examples vendor

.PHONY: demo demo-real picture real-curve real-results test check fmt docs tiny-model test-oldest clean

demo: $(STAMP)
	$(BIN)/hildanext demo

# A real model: fetches SmolLM2-135M-Instruct, puts the adapters of models/smollm2-135m-diffusion over it, answers ten prompts with both
# and compares them; each line finds what an earlier start has done. Then one answer as it is filled in, also as a picture.
REAL := runs/demo-real
PARENT := models/smollm2-135m
CHILD := models/smollm2-135m-diffusion
ASK := Write one sentence about a cat.
demo-real: $(STAMP)
	$(BIN)/hildanext fetch smollm2-135m
	$(BIN)/hildanext answer --write-prompts 10 --held-out --out $(REAL)/prompts.jsonl
	$(BIN)/hildanext answer --model $(PARENT) --prompts $(REAL)/prompts.jsonl --out $(REAL)/answers.jsonl --max-new-tokens 64 --unfinished keep
	$(BIN)/hildanext compare $(PARENT) $(CHILD) --data $(REAL)/answers.jsonl --run-dir $(REAL)/compare --show 10 --set decode.max_new_tokens=64
	$(BIN)/hildanext generate --chat --model $(CHILD) --prompt "$(ASK)" --max-new-tokens 64 --stream --trace $(REAL)/trace.jsonl
	$(BIN)/python -m hildanext.report.animation $(REAL)/trace.jsonl $(REAL)/decode.svg "" 'hildanext generate --chat --prompt "$(ASK)"'

# README's first picture: the real model decoding, from a decode of this moment. `make picture ASK="..."` takes another prompt.
picture: $(STAMP)
	mkdir -p $(REAL)
	$(BIN)/hildanext generate --chat --model $(CHILD) --prompt "$(ASK)" --max-new-tokens 64 --trace $(REAL)/picture.jsonl
	$(BIN)/python -m hildanext.report.animation $(REAL)/picture.jsonl docs/images/smollm2.svg "" 'hildanext generate --chat --prompt "$(ASK)"'

# Every figure of the real model, with DTYPE=bfloat16 where the processor has units for it: real-curve chooses thresholds (the line it
# prints keeps them), real-results measures with those of the model folder. Both want minutes, and HILDANEXT_ASSETS for the public sets.
DTYPE := auto
export HILDANEXT_ASSETS ?= ../shared/assets
real-curve: $(STAMP)
	$(BIN)/hildanext fetch smollm2-135m
	$(BIN)/hildanext answer --write-prompts 64 --held-out --out runs/real/choice.jsonl
	$(BIN)/hildanext eval --config runs/configs/smollm2_curve.json --run-dir runs/real/curve --set model.dtype=$(DTYPE)

real-results: $(STAMP)
	$(BIN)/hildanext fetch smollm2-135m
	$(BIN)/hildanext answer --write-prompts 64 --held-out --out runs/real/report.jsonl --set seed=1
	$(BIN)/hildanext answer --model $(PARENT) --prompts runs/real/report.jsonl --out runs/real/answers.jsonl --limit 32 --max-new-tokens 96 --unfinished keep --set model.dtype=$(DTYPE)
	$(BIN)/hildanext compare $(PARENT) $(CHILD) --data runs/real/answers.jsonl --run-dir runs/real/compare --set decode.max_new_tokens=96 --set model.dtype=$(DTYPE)
	$(BIN)/hildanext eval --config runs/configs/smollm2_parent.json --run-dir runs/real/parent --set model.dtype=$(DTYPE)
	$(BIN)/hildanext eval --config runs/configs/smollm2_eval.json --run-dir runs/real/eval --against runs/real/parent --set model.dtype=$(DTYPE)

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
