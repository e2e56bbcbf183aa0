"""The outside world: URLs, robots.txt, address guard, the download engine."""
