# A decode as an animated picture: every step of one story, masks, drafts and edits, as an SVG for any browser.
# Entry points: `python examples/decode_animation.py OUT.svg [prompt]`; OUT.html is a player, OUT.gif a GIF.
# A trace holds the block at work after every step; the picture puts the prompt and the finished blocks around it.
"""A decode saved as an animation."""

import sys
from pathlib import Path

import hildanext

if __name__ == "__main__":
    out, prompt = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "One day"
    model = hildanext.load("tiny")
    result = model.generate(prompt, mode="S_MODE", max_new_tokens=96, trace=True)
    result.animation(f"hildanext generate --prompt {prompt!r}").save(out)
    print(f"written: {out}, {result.metrics.steps} steps, {result.metrics.tokens_per_forward:.2f} tokens per forward")
