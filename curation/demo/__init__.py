"""The demo: a small real crawl, a private Airflow, and what came of it against the truth."""
