"""Work across shards: emit keyed rows, match, apply."""
