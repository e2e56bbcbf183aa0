"""From judged samples to dataset versions."""
