"""Pages over the store, rendered here and served inside Airflow by plugins/curation_pages.py."""
