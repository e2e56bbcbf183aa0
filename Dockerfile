# Two targets: cpu for everything but models (no torch), gpu with them. Build: docker compose build
FROM debian:bookworm-slim AS base
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 50000 curation
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 AIRFLOW_HOME=/opt/airflow
WORKDIR /opt/curation
# dependencies first: a change of code does not install them again. The package itself is installed from a stand-in
# of its sources and readme, then the real ones take its place.
COPY pyproject.toml requirements.lock LICENSE ./
RUN mkdir curation && printf '__version__ = "0"\n' > curation/__init__.py && touch README.md \
    && python3 -m venv /opt/venv \
    && pip install --no-cache-dir -c requirements.lock -e ".[airflow]" \
    && mkdir -p /opt/airflow/logs /opt/numba && chown -R curation /opt/airflow /opt/numba
# the machine code of compiled loops; a processor of another kind than the builder's compiles them again
ENV NUMBA_CACHE_DIR=/opt/numba
ENV AIRFLOW__CORE__DAGS_FOLDER=/opt/curation/dags AIRFLOW__CORE__PLUGINS_FOLDER=/opt/curation/plugins
COPY deploy/entrypoint.sh /entrypoint
ENTRYPOINT ["tini", "--", "/entrypoint"]

FROM base AS cpu
COPY curation curation
COPY dags dags
COPY plugins plugins
USER curation
RUN python -m curation.compiled

# the torch of the index is the CUDA build; the driver comes from the host through the container toolkit
FROM base AS gpu
RUN pip install --no-cache-dir -c requirements.lock -e ".[airflow,models,video]"
COPY curation curation
COPY dags dags
COPY plugins plugins
USER curation
RUN python -m curation.compiled
