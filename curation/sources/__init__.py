"""Where candidates come from: Common Crawl, folders of archives, tables of URLs."""
