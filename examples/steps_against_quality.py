# Fewer forwards or better stories: valid stories against tokens per forward over tau_mask, with and without editing.
# Entry points: `python examples/steps_against_quality.py OUT.png [stories]`; needs matplotlib.
# The story world's checker decides what a valid story is; the bars are 95 % intervals.
"""Steps against quality of the bundled child."""

import sys

from matplotlib.figure import Figure

import hildanext
from hildanext.report.intervals import Measure, share
from hildanext.world import check, story


def measure(model: hildanext.Model, stories: int, **settings: float | None) -> tuple[float, Measure]:
    """Tokens per forward of all stories decoded together, and the share of them that is valid."""
    openings = [story(f"example:{index}").sentences[0] for index in range(stories)]
    results = model.generate(openings, mode="S_MODE", max_new_tokens=256, **settings)
    texts = [opening + result.text for opening, result in zip(openings, results, strict=True)]
    forwards = sum(result.metrics.forwards for result in results)
    tokens = sum(result.metrics.tokens for result in results)
    return tokens / forwards, share(sum(check(text).valid for text in texts), stories)


if __name__ == "__main__":
    out, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 16
    model, figure = hildanext.load("tiny"), Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for label, tau_edit in (("no editing", None), ("tau_edit 0.5", 0.5)):
        points = [measure(model, count, tau_mask=tau, tau_edit=tau_edit) for tau in (0.95, 0.7, 0.6, 0.5, 0.3)]
        x, y = [speed for speed, _ in points], [100 * valid.value for _, valid in points]
        (line,) = axes.plot(x, y, marker="o", label=label)
        low, high = [100 * valid.low for _, valid in points], [100 * valid.high for _, valid in points]
        axes.vlines(x, low, high, colors=line.get_color())
        print(label, [f"{speed:.2f} tokens per forward: {valid.text()}" for speed, valid in points])
    axes.set(xlabel="tokens per forward", ylabel="valid stories, %", title="bundled child, tau_mask 0.95 to 0.3")
    axes.legend(frameon=False)
    figure.savefig(out)
