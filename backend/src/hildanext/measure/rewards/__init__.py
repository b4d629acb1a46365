# Plugins of measure/rewards: one file each, the file name is the registry name.
# Entry points: hildanext.registry.build.
# Adding a plugin is adding a file here; docs/rl.md says how to choose among them.
"""Plugins of measure/rewards."""
