"""What tasks need is loaded before they are forked: imports took three quarters of the CPU time of a small task.

Airflow imports this name once, at the start of each component; the scheduler (LocalExecutor) and Celery workers fork
tasks. A deployment's own airflow_local_settings, in its config folder or on its Python path, is found first. No torch:
a process that forks must not have touched a GPU.
"""

import sys
from importlib import import_module

__all__: list[str] = []

if {"scheduler", "celery"} & set(sys.argv):
    ours = ("curation.runner", "curation.publish.version", "lexicalrichness", "pandas", "boto3")
    for name in (*ours, "airflow.sdk.definitions.decorators", "jinja2.ext"):  # DAG files, templates of labels
        import_module(name)
