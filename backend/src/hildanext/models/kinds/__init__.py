# Package models.kinds: one file per kind of model; the file name is the `kind` of hildanext.json.
# Entry points: the modules of this folder, through hildanext.registry.
# Importing the package itself loads nothing heavy.
"""hildanext.models.kinds."""
