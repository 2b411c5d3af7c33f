# Everything that bin/test needs, with the Postgres and the Redis of the distribution behind docker-compose.yml's images.
FROM rust:1.95-slim-trixie
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    ca-certificates chromium-driver curl git haproxy pgbouncer postgresql-17 procps prometheus python3-venv redis-server shellcheck strace util-linux
