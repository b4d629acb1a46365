# Export `sglang`: a Qwen3 child in SDAR form, which SGLang serves as a block-diffusion model.
# Entry points: Sglang.
# SDARForCausalLM is Qwen3 with the same weight names and no shift. It reads rope_theta from the top level of
# config.json, its mask id is fixed at 151669, a tied head would be looked up in vain: it is untied.
"""Export plugin sglang."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from hildanext.disk import replacing, write_atomic
from hildanext.errors import ModelError
from hildanext.registry import Plugin

MASK_ID = 151669
ARCHITECTURE, MODEL_TYPE = "SDARForCausalLM", "sdar"


class Sglang(Plugin):
    """SDAR-form folder and the YAML of `--dllm-algorithm-config`. Only Qwen3-dense models without shift qualify."""

    threshold: float = Field(0.7, gt=0, le=1, description="probability a mask must exceed to be filled")
    edit_threshold: float | None = Field(
        None, description="probability a rewrite must exceed: JointThreshold; null: LowConfidence, no editing"
    )
    max_post_edit_steps: int = Field(16, ge=0, description="edit updates of a block without masks, a count")

    def write(self, loaded: Any, folder: Path) -> list[str]:
        """Write the folder, replacing it; returns the names of its files. ModelError for a model SDAR cannot be."""
        from hildanext.models.save import write_model

        self._check(loaded)
        with replacing(folder) as fresh:
            write_model(loaded.denoiser, loaded.tokenizer, fresh, loaded.meta, loaded.path)
            self._weights(loaded, fresh)
            self._config(loaded, fresh)
            write_atomic(fresh / "dllm.yaml", self._yaml(loaded))
        return sorted(path.name for path in folder.iterdir())

    def _check(self, loaded: Any) -> None:
        from hildanext.models.denoiser import network

        denoiser, kind = loaded.denoiser, type(network(loaded.denoiser)).__name__
        found = []
        if kind != "Qwen3ForCausalLM":
            found.append(f"the architecture is {kind}, SDAR is Qwen3-dense")
        if denoiser.shift != "none":
            found.append(f"the model was trained with shift {denoiser.shift!r}, SDAR has none")
        if denoiser.vocab_size <= MASK_ID:
            found.append(f"the vocabulary has {denoiser.vocab_size} rows, SDAR's mask id is {MASK_ID}")
        if found:
            raise ModelError(f"export sglang: {'; '.join(found)}; use the huggingface export and our own server")

    def _weights(self, loaded: Any, folder: Path) -> None:
        from safetensors.torch import save_file

        denoiser = loaded.denoiser
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in denoiser.model.state_dict().items()}
        embedding = state["model.embed_tokens.weight"].clone()
        head = denoiser.head().detach().cpu().clone()
        for table in (embedding, head):
            table[MASK_ID] = table[denoiser.mask_id]
        state |= {"model.embed_tokens.weight": embedding, "lm_head.weight": head}
        for old in (*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")):
            old.unlink()
        save_file(state, str(folder / "model.safetensors"), metadata={"format": "pt"})

    def _config(self, loaded: Any, folder: Path) -> None:
        path = folder / "config.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        if "rope_theta" not in values:
            raise ModelError("export sglang: config.json has no rope_theta, and SGLang would assume 10,000")
        block = loaded.meta.block or 4
        values |= {
            "architectures": [ARCHITECTURE], "model_type": MODEL_TYPE, "tie_word_embeddings": False,
            "mask_token_id": MASK_ID, "block_size": block,
        }  # fmt: skip
        write_atomic(path, json.dumps(values, indent=2, sort_keys=True) + "\n")
        own = folder / "hildanext.json"
        facts = json.loads(own.read_text(encoding="utf-8")) | {"mask_id": MASK_ID}
        write_atomic(own, json.dumps(facts, indent=2) + "\n")

    def _yaml(self, loaded: Any) -> str:
        lines = [f"threshold: {self.threshold:g}", f"block_size: {loaded.meta.block or 4}"]
        if self.edit_threshold is not None:
            lines += [f"edit_threshold: {self.edit_threshold:g}", f"max_post_edit_steps: {self.max_post_edit_steps}"]
        algorithm = "LowConfidence" if self.edit_threshold is None else "JointThreshold"
        lead = f"# python -m sglang.launch_server --model-path . --dllm-algorithm {algorithm}"
        return "\n".join([f"{lead} --dllm-algorithm-config dllm.yaml", *lines, ""])
