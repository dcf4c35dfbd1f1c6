# The service: model, code and what it needs to answer. Context: the folder of a Bento (src/ and env/python/requirements.txt).
ARG PYTHON_IMAGE

FROM ${PYTHON_IMAGE} AS venv
COPY env/python/requirements.txt /requirements.txt
# Tests, type stubs and C headers are never used by a running service. The import compiles what is, and only that.
RUN python3 -m venv --without-pip /venv \
 && python3 -m pip --python /venv/bin/python install --quiet --no-cache-dir --no-compile --no-deps --require-hashes -r /requirements.txt \
 && find /venv -depth \( -type d \( -name tests -o -name include \) -o -name '*.pyi' -o -name '*.h' \) -exec rm -rf {} + \
 && /venv/bin/python -c 'import elasticsearch, fastapi, numpy, onnxruntime, prometheus_client, psycopg, pydantic, uvicorn' \
 && chmod -R a+rX,go-w /venv

FROM ${PYTHON_IMAGE} AS app
COPY src /app
RUN python3 -m compileall -q /app/model_service && chmod -R a+rX,go-w /app

FROM ${PYTHON_IMAGE}
# What runs installs nothing.
RUN find / -xdev -depth \( -type d \( -name pip -o -name 'pip-*' -o -name ensurepip \) -o -type f -name 'pip*' -path '*/bin/*' \) -exec rm -rf {} +
COPY --from=venv /venv /venv
COPY --from=app /app /app
WORKDIR /app
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 ENVIRONMENT=production HOME=/tmp BENTOML_HOME=/tmp/bentoml BENTOML_DO_NOT_TRACK=True
USER 10001:10001
EXPOSE 3000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:3000/readyz', timeout=2)"]
CMD ["python", "-m", "uvicorn", "model_service.serving.app:app", "--host", "0.0.0.0", "--port", "3000", "--no-access-log", "--timeout-graceful-shutdown", "10"]
ARG REVISION=uncommitted
ARG MODEL_DIGEST
LABEL org.opencontainers.image.revision=${REVISION} model.digest=${MODEL_DIGEST}
