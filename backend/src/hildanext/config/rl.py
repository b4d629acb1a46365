# Settings of rl and dpo: prompts, rewards, groups, epochs, when to stop; pairs of answers.
# Entry points: RlConfig, DpoConfig, PolicyObjectiveSection, RewardSection.
# The objective of both is a plugin of core/policy_objectives; train, ladder, optimizer and decode are as ever.
"""Reinforcement-learning sections of the configuration."""

from typing import ClassVar, Literal

from pydantic import Field

from hildanext.config.base import PluginSection, Section


class PolicyObjectiveSection(PluginSection):
    """{"type": plugin of core/policy_objectives, ...fields}."""

    kind: ClassVar[str] = "policy_objectives"
    by_name: ClassVar[bool] = True


class RewardSection(PluginSection):
    """{"type": plugin of measure/rewards, "weight": factor in the sum, ...fields}."""

    kind: ClassVar[str] = "rewards"
    by_name: ClassVar[bool] = True


class RlConfig(Section):
    """rl: what is asked, what is rewarded, how often an answer is learned from."""

    objective: PolicyObjectiveSection = Field(
        PolicyObjectiveSection(type="ebpo"), description="espo | ebpo | agrpo | trace | wd1, with its fields"
    )
    rewards: tuple[RewardSection, ...] = Field(
        (RewardSection(type="storyworld"),), min_length=1, description="summed; the first decides all right, all wrong"
    )
    rows: str = Field(
        "world:arithmetic", description="file of rows, or world:<register>[:<seed>] (arithmetic, coding, chat)"
    )
    limit: int = Field(0, ge=0, description="rows read at most, a count; 0: all (of a world's register 2,000)")
    ask: str = Field("", description="what is asked, with {field} of the row in it; empty: the row's own prompt")
    groups: int = Field(8, ge=1, description="prompts answered by one model state, a count")
    samples: int = Field(8, ge=2, description="answers per prompt (a group), a count")
    answer: int = Field(128, ge=1, description="longest answer, tokens")
    epochs: int = Field(1, ge=1, description="times the answers of a model state are learned from, each on new masks")
    eos: Literal["mask", "canvas"] = Field(
        "mask", description="mask: nothing behind the first end counts; canvas: what was decoded behind it counts too"
    )
    drop: tuple[Literal["all_right", "all_wrong", "narrow"], ...] = Field(
        (), description="groups that are not learned from, by the first reward (right: 1 or more, wrong: 0 or less)"
    )
    narrow: float = Field(0.01, ge=0, description="narrow: range of a group's sums of rewards below this")
    reference: str = Field("", description="folder of the reference; empty: what the run began from")
    held_out: int = Field(16, ge=0, description="last prompts, never learned from, that are answered now and then")
    measure_every: int = Field(4, ge=1, description="rollouts between answers to the held-out prompts, a count")
    most_drop: float = Field(0.2, ge=0, description="stop where their mean reward is this far below the best; 0: never")


class DpoConfig(Section):
    """dpo: pairs of answers, and their objective."""

    objective: PolicyObjectiveSection = Field(PolicyObjectiveSection(type="dpo"), description="dpo, with its fields")
    pairs: str = Field("", description="file of rows with a prompt, chosen and rejected")
    chosen: str = Field("chosen", description="field of the better answer")
    rejected: str = Field("rejected", description="field of the worse answer")
    limit: int = Field(0, ge=0, description="pairs read at most, a count; 0: all")
    reference: str = Field("", description="folder of the reference; empty: what the run began from")
    held_out: int = Field(32, ge=0, description="last pairs, never learned from, measured before and after")
