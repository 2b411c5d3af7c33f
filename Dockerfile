# Build stage (factor V): one image for every process type and every deploy. It contains the code and no config.
FROM rust:1.95-slim-trixie AS source
WORKDIR /src
# Each program contains the list of its dependencies, for scanners: `cargo audit bin web`, `syft`, `trivy`.
COPY bin/tools.sh bin/
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    . bin/tools.sh && cargo install --locked --debug --root /usr/local --version "$(pinned_tool cargo-auditable)" cargo-auditable
# The programs are linked statically, because the image has no C library.
ENV RUSTFLAGS="-C target-feature=+crt-static" SQLX_OFFLINE=true
# The builds name a target, the machine's own, so that build scripts are not linked statically.
# Without GIT_COMMIT, build.rs finds the commit in the copied files.
ARG GIT_COMMIT
COPY . .

FROM source AS build
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    target=$(rustc --print host-tuple) \
    && cargo auditable build --release --locked --target "$target" --bins \
    && cd "target/$target/release" \
    && install -D -t /out/bin web worker clock admin

# The mail sink for trying the service. No deploy runs it.
FROM source AS build-mail
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    target=$(rustc --print host-tuple) \
    && cargo build --locked --target "$target" --example mail \
    && install -D -t /out "target/$target/debug/examples/mail"
FROM scratch AS mail
COPY --from=build-mail /out/mail /bin/mail
USER 10001:10001
STOPSIGNAL SIGTERM
EXPOSE 1025 8025
CMD ["/bin/mail", "0.0.0.0:1025", "0.0.0.0:8025"]

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/bin /bin
ARG GIT_COMMIT VERSION
LABEL org.opencontainers.image.revision=$GIT_COMMIT org.opencontainers.image.version=$VERSION
ENV PATH=/bin
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s CMD ["admin", "health"]
CMD ["web"]
