"""A rehearsal of docker-compose.yml without a container engine.

Every service that can run on a Debian host is started by its very command, with its very environment, secrets, mounts
and health check, as a process on loopback: the roles of Headgate, the proxy, NATS, PostgreSQL and Prometheus, on the
configurations that are shipped. An OTLP receiver stands in for the collector. Then traffic is sent through the proxy,
and what operators rely on is checked. `python -m deploy.rehearsal` prints what was found; docs/operations.md has what a
rehearsal cannot show.

| module | what it is |
| --- | --- |
| `compose.py` | docker-compose.yml as data |
| `translation.py` | what of it is changed for loopback, and nothing else |
| `programs.py`, `image.py` | which program of this host stands for which image, and what ours lacks |
| `service.py`, `stage.py` | one process with its health check; all of them, in the order of their health |
| `receiver.py` | OTLP over HTTP, and the spans of a trace |
| `traffic.py` | the clients |
| `queries.py`, `checks.py`, `traces.py`, `recovery.py` | what must be true: while it runs, and when it is hurt |
| `failover.py` | the same for the profile `ha` |
"""
