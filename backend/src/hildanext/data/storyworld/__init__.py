# The story world: small consistent English stories with known probability, and chat, arithmetic and code about them.
# Entry points: story, parse, check, contradictions, entropy, corpus, check_answer, VOCABULARY.
# Pure standard library. Everything drawn depends on the seed alone, in every process and on every machine.
from hildanext.data.storyworld.chat import prompt, requested
from hildanext.data.storyworld.check import Problem, Verdict, check, contradictions
from hildanext.data.storyworld.coding import humaneval_row
from hildanext.data.storyworld.corpus import KINDS, VOCABULARY, check_answer, corpus
from hildanext.data.storyworld.story import Story, World, as_facts, distinct_stories, entropy, parse, story

__all__ = [
    "KINDS",
    "VOCABULARY",
    "Problem",
    "Story",
    "Verdict",
    "World",
    "as_facts",
    "check",
    "check_answer",
    "contradictions",
    "corpus",
    "distinct_stories",
    "entropy",
    "humaneval_row",
    "parse",
    "prompt",
    "requested",
    "story",
]
