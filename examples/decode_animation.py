# A decode as an animated picture: every forward of one story, masks, drafts and edits, as an SVG for any browser.
# Entry points: `python examples/decode_animation.py OUT.svg [prompt]`.
# A trace holds the block at work after every forward; frames put the prompt and the finished blocks around it.
"""A decode saved as an animation."""

import sys
from pathlib import Path

import hildanext
from hildanext.report.animation import animate
from hildanext.report.frames import frames_of

if __name__ == "__main__":
    out, prompt = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "One day"
    model = hildanext.load("tiny")
    result = model.generate(prompt, mode="S_MODE", max_new_tokens=96, trace=True)
    frames = frames_of(prompt, result.trace)
    out.write_text(animate(frames, f"hildanext generate --prompt {prompt!r}"), encoding="utf-8")
    print(f"written: {out}, {len(frames)} forwards, {result.metrics.tokens_per_forward:.2f} tokens per forward")
