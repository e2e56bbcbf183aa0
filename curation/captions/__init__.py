"""Captions: policies that choose between texts, and what keeps a caption fit to publish."""
