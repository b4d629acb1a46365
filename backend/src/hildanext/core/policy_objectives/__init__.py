# Objectives of reinforcement learning and of preferences; one file each, the file name is the name.
# Entry points: the plugins, through registry.build("policy_objectives", ...).
# Their contract is core/policy_objective.py.
"""hildanext.core.policy_objectives."""
