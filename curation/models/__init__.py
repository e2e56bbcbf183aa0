"""Models that measure pixels and text, all loaded from safetensors or weights-only files, never from pickles."""
