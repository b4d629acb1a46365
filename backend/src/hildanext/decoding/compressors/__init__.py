# Plugins of decoding/compressors: one file each, the file name is the registry name.
# Entry points: hildanext.registry (names, load, build).
# Contract: decoding.compression.KVCompressor; test/contracts/test_compressors.py.
"""Plugins of decoding/compressors."""
