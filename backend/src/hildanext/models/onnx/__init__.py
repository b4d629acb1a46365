# A denoiser as an ONNX graph: what networks can be one, the graph, the folder it is written to, and running it.
# Entry points: the files of this folder; folder.write_onnx and denoiser.OnnxDenoiser.
# The packages onnx and onnxruntime are the extra `onnx`; nothing here imports them until they are needed.
"""ONNX export and its runtime."""
