# Package latents: one file per type of latent model (plugins of kind `latents`).
# Entry points: the modules of this folder, by name through the registry.
# Importing the package itself loads nothing heavy.
"""hildanext.latents."""
