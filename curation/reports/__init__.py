"""Numbers for people: funnels, audits, the life of a sample."""
