"""The demo crawl: a small hostile web of real photographs, built and crawled at run time."""
