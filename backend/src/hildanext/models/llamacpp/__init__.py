# A denoiser whose forward is llama.cpp's, over a GGUF file that `hildanext export --format gguf` wrote.
# Entry points: the files of this folder; denoiser.LlamaCppDenoiser.
# llama-cpp-python is optional and imported when a file is opened, not before.
"""llama.cpp as a runtime."""
