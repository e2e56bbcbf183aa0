"""curation: Common Crawl dumps in, versioned image-text datasets out."""

__version__ = "0.1.0"
