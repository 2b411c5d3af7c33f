# Build stage (factor V): one image for every process type and every deploy; it holds code and no config.
FROM rust:1.95-slim-trixie AS source
WORKDIR /src
# Each program carries the list of what it was built from, for scanners: `cargo audit bin web`, `syft`, `trivy`.
COPY bin/tools.sh bin/
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    . bin/tools.sh && cargo install --locked --debug --root /usr/local --version "$(pinned_tool cargo-auditable)" cargo-auditable
# The programs run in an image without a C library, so they bring their own.
ENV RUSTFLAGS="-C target-feature=+crt-static" SQLX_OFFLINE=true
# With a named target, here the machine's own, what runs at build time is not linked so.
# Unless it is told, build.rs finds the commit in what is copied.
ARG GIT_COMMIT
COPY . .

FROM source AS build
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    target=$(rustc --print host-tuple) \
    && cargo auditable build --release --locked --target "$target" --features one-program --bin all \
    && install -D -t /out/bin "target/$target/release/all"
# It acts by the name that it is called by.
RUN for name in web worker clock admin; do ln -s all "/out/bin/$name"; done

# The mail sink of a trial; no deploy runs it.
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
