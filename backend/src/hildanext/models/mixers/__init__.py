# Plugins of the kind `mixers`: recurrent layers of hybrid networks, one file each.
# Entry points: none; registry.names("mixers") lists the files.
# What a mixer must do stands in models/mixer.py, which layers go on from which in models/runs.py.
"""Recurrent mixers."""
