# syntax=docker/dockerfile:1
# The worker: the engine with torch. `--build-arg DEVICE=cuda` takes the wheels with CUDA (gigabytes); they bring the
# CUDA libraries with them, and the driver comes from the host's NVIDIA runtime.

FROM python:3.11.15-slim-bookworm AS build
ARG DEVICE=cpu
WORKDIR /build
RUN python -m venv --without-pip /opt/headgate
COPY pyproject.toml deploy/requirements.py ./
RUN --mount=type=cache,target=/root/.cache/pip \
    case "$DEVICE" in \
        cpu) set -- --extra-index-url https://download.pytorch.org/whl/cpu; \
             pin() { sed -E '/^triton/d; s/^(torch==[0-9.]+).*/\1+cpu/'; } ;; \
        cuda) set --; pin() { cat; } ;; \
        *) echo "DEVICE is '$DEVICE': it must be cpu or cuda" >&2; exit 1 ;; \
    esac \
    && python requirements.py pyproject.toml --extra worker | pin > requirements.txt \
    && python -m pip --python /opt/headgate/bin/python install --disable-pip-version-check "$@" -r requirements.txt
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip --python /opt/headgate/bin/python install --disable-pip-version-check --no-deps .

FROM python:3.11.15-slim-bookworm
ARG DEVICE=cpu
# Triton compiles the launcher of a kernel with the host's C compiler when it is first used.
RUN if [ "$DEVICE" = cuda ]; then \
        apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi
RUN useradd --uid 10001 --user-group --home-dir /var/lib/headgate --create-home --shell /usr/sbin/nologin headgate
COPY --from=build /opt/headgate /opt/headgate
ENV PATH=/opt/headgate/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CACHE_DIR=/var/lib/headgate/numba NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /var/lib/headgate
CMD ["headgate", "run", "worker"]
