# Two images from one wheel: `api` (no torch: API, migrations, command line) and `worker` (adds the training stack).
# Both run from the installed package, in /srv, as an unprivileged user.

FROM python:3.11-slim AS wheel
WORKDIR /src
COPY . .
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim AS api
COPY --from=wheel /wheels /wheels
COPY constraints/cpu.txt /wheels/constraints.txt
RUN python -m pip install --no-cache-dir --constraint /wheels/constraints.txt /wheels/*.whl \
 && useradd --system --create-home jenga \
 && install --directory --owner jenga --mode 700 /var/lib/jenga
ENV JENGA_DATA_DIR=/var/lib/jenga PYTHONUNBUFFERED=1
WORKDIR /srv
USER jenga
VOLUME /var/lib/jenga
EXPOSE 8000
CMD ["uvicorn", "--factory", "api.app:create_app", "--host", "0.0.0.0", "--port", "8000", "--timeout-graceful-shutdown", "5"]

FROM api AS worker
USER root
RUN wheel="$(ls /wheels/*.whl)" \
 && python -m pip install --no-cache-dir --constraint /wheels/constraints.txt "${wheel}[train]"
USER jenga
CMD ["celery", "--app", "worker.app", "worker", "--queues", "run", "--loglevel", "INFO"]
