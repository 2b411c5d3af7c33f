# All that bin/test asks for, with the Postgres and the Redis of the system that docker-compose.yml's images are made of.
FROM rust:1.95-slim-trixie
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    ca-certificates curl git haproxy pgbouncer postgresql-17 procps prometheus python3-venv redis-server shellcheck strace util-linux
