# syntax=docker/dockerfile:1
# Every role but the worker: gateway, admission, scheduler, ledger. No torch, no numpy, no compiler, no nats-server.
# deploy/image_size.py computes its size from the wheels.

FROM python:3.11.15-slim-bookworm AS build
WORKDIR /build
RUN python -m venv --without-pip /opt/headgate
# The libraries first, by their pins alone: a change of the code does not install them anew.
COPY pyproject.toml deploy/requirements.py ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python requirements.py pyproject.toml --extra postgres > requirements.txt \
    && python -m pip --python /opt/headgate/bin/python install --disable-pip-version-check -r requirements.txt \
    && python requirements.py --removed \
    | xargs python -m pip --python /opt/headgate/bin/python uninstall --yes
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip --python /opt/headgate/bin/python install --disable-pip-version-check --no-deps .

FROM python:3.11.15-slim-bookworm
RUN useradd --uid 10001 --user-group --home-dir /var/lib/headgate --create-home --shell /usr/sbin/nologin headgate
COPY --from=build /opt/headgate /opt/headgate
ENV PATH=/opt/headgate/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /var/lib/headgate
CMD ["headgate", "--help"]
