# The story world: small consistent English stories with known probability, and chat, arithmetic and code about them.
# Entry points: story, parse, check, contradictions, entropy, corpus, check_answer, VOCABULARY.
# Pure standard library. Everything drawn depends on the seed alone, in every process and on every machine.
from hildanext.world.check import Problem, Verdict, check, contradictions
from hildanext.world.coding import humaneval_row
from hildanext.world.corpus import KINDS, VOCABULARY, check_answer, corpus
from hildanext.world.story import Story, World, as_facts, distinct_stories, entropy, parse, story

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
    "story",
]
