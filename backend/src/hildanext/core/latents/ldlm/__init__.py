# The latent diffusion language model: noise schedule, times, gates of gradients, samplers, and its networks.
# Entry points: network, schedule, times, gates, samplers, perceiver, dit, attention.
# Torch only; what reads a parent, a batch or a request is latents/ldlm.py.
"""Mathematics of LDLM."""
