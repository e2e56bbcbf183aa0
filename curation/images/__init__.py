"""Pictures: decoding, resizing, perceptual hashes."""
