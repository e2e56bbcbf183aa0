"""The stages of the pipeline: each measures, none decides."""
