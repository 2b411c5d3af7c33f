# What the tests of features and of jobs need, with the Postgres and the Redis of the distribution behind docker-compose.yml's images.
FROM rust:1.95-slim-trixie
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    ca-certificates curl git pgbouncer postgresql-17 procps python3-venv redis-server util-linux
