# The loader: migrations and loads. Neither training nor serving is in it, nor what they need. Context: the project.
ARG PYTHON_IMAGE

FROM ${PYTHON_IMAGE} AS venv
COPY requirements /requirements
WORKDIR /requirements
# loader.txt, and what single sources need beside it: they name it in *.in.
RUN python3 -m venv --without-pip /venv \
 && set -- loader.txt && for wanted in *.in; do [ ! -e "$wanted" ] || set -- "$@" "${wanted%.in}.txt"; done \
 && for lock in "$@"; do \
      python3 -m pip --python /venv/bin/python install --quiet --no-cache-dir --no-compile --no-deps --require-hashes -r "$lock" || exit 1; \
    done \
 && python3 -m compileall -q --invalidation-mode unchecked-hash /venv && chmod -R a+rX,go-w /venv

FROM ${PYTHON_IMAGE} AS app
COPY src/model_service /app/model_service
COPY service.toml /app/service.toml
COPY data /app/data
RUN rm -rf /app/model_service/training /app/model_service/serving \
 && python3 -m compileall -q --invalidation-mode unchecked-hash /app/model_service && chmod -R a+rX,go-w /app

FROM ${PYTHON_IMAGE}
# What runs installs nothing.
RUN find / -xdev -depth \( -type d \( -name pip -o -name 'pip-*' -o -name ensurepip \) -o ! -type d -name 'pip*' -path '*/bin/*' \) -exec rm -rf {} +
COPY --from=venv /venv /venv
COPY --from=app /app /app
WORKDIR /app
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 ENVIRONMENT=production HOME=/tmp
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "model_service"]
CMD ["load"]
ARG REVISION=uncommitted
LABEL org.opencontainers.image.revision=${REVISION}
