# The service: model, code and what it needs to answer. Context: the folder of a Bento, of which src/ is read.
ARG PYTHON_IMAGE

FROM ${PYTHON_IMAGE} AS venv
COPY src/requirements.txt /requirements.txt
# Tests, type stubs and C headers are never used by a running service.
RUN python3 -m venv --without-pip /venv \
 && python3 -m pip --python /venv/bin/python install --quiet --no-cache-dir --no-compile --no-deps --require-hashes -r /requirements.txt \
 && find /venv -depth \( -type d \( -name tests -o -name include \) -o -name '*.pyi' -o -name '*.h' \) -exec rm -rf {} + \
 && python3 -m compileall -q --invalidation-mode unchecked-hash /venv && chmod -R a+rX,go-w /venv

FROM ${PYTHON_IMAGE} AS app
COPY src /app
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /app && chmod -R a+rX,go-w /app

FROM ${PYTHON_IMAGE}
# What runs installs nothing.
RUN find / -xdev -depth \( -type d \( -name pip -o -name 'pip-*' -o -name ensurepip \) -o ! -type d -name 'pip*' -path '*/bin/*' \) -exec rm -rf {} +
COPY --from=venv /venv /venv
COPY --from=app /app /app
WORKDIR /app
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 ENVIRONMENT=production HOME=/tmp
# The public base has no bytecode of the standard library, and nothing can be written later: what a start imports is compiled now.
RUN python -c 'import concurrent.futures.thread, elasticsearch, encodings.idna, model_service.cli, urllib.request, uvicorn; uvicorn.Config("model_service.serving.app:app", http="model_service.serving.protocol:Protocol").load()'
USER 10001:10001
EXPOSE 3000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:3000/readyz', timeout=2)"]
CMD ["python", "-m", "uvicorn", "model_service.serving.app:app", "--host", "0.0.0.0", "--port", "3000", "--no-access-log", "--no-proxy-headers", "--http", "model_service.serving.protocol:Protocol", "--timeout-graceful-shutdown", "1"]
ARG REVISION=uncommitted
ARG MODEL_DIGEST
ARG DATA_VERSION
LABEL org.opencontainers.image.revision=${REVISION} model.digest=${MODEL_DIGEST} data.version=${DATA_VERSION}
