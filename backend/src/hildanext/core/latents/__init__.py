# Package core.latents: the mathematics of the latent models, torch only; no plugins here.
# Entry points: the modules of this folder.
# Importing the package itself loads nothing heavy.
"""hildanext.core.latents."""
