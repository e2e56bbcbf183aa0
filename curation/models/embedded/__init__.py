"""The embedded CLIP-like model: trained heads on frozen backbones that installed packages carry."""
