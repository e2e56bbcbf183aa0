#!/bin/sh
# `scheduler` means `airflow scheduler`; a program named in full is run as it stands. Airflow's own image does the same,
# and the Helm chart counts on it: its commands begin with bash or airflow, its probes with /entrypoint.
case "$1" in
  airflow | bash | python | sh) exec "$@" ;;
  *) exec airflow "$@" ;;
esac
