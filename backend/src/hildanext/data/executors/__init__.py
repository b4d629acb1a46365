# Plugins of data/executors: one file each, the file name is the registry name.
# Entry points: hildanext.registry.build.
# Adding a plugin is adding a file here.
"""Plugins of data/executors."""
