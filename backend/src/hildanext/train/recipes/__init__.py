# Package train.recipes: one file per kind of training, each a Work for the loop and the run around it.
# Entry points: the modules of this folder.
# Importing the package itself loads nothing heavy.
"""hildanext.train.recipes."""
