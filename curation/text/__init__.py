"""Captions: cleaning, language."""
