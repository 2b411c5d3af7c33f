# Build stage (factor V): one image for every process type and every deploy. It contains the code and no config.
FROM rust:1.95-slim-trixie AS source
WORKDIR /src
# The program carries the list of what it was built from, for scanners: `cargo audit bin all`, `syft`, `trivy`.
COPY bin/tools.sh bin/
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    . bin/tools.sh && cargo install --locked --debug --root /usr/local --version "$(pinned_tool cargo-auditable)" cargo-auditable
# The programs are linked statically, because the image has no C library.
ENV RUSTFLAGS="-C target-feature=+crt-static"
# The builds name a target, the machine's own, so that build scripts are not linked statically.
# Without GIT_COMMIT, build.rs finds the commit in the copied files.
ARG GIT_COMMIT
COPY . .

FROM source AS build
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    target=$(rustc --print host-tuple) \
    && cargo auditable build --release --locked --target "$target" --features one-program --bin all \
    && install -D -t /out/bin "target/$target/release/all"
# It acts by the name that it is called by.
RUN for name in web worker clock admin; do ln -s all "/out/bin/$name"; done

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
CMD ["web"]
