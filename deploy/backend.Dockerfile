# The backend: API, job machinery, reconcilers. Runs as anybody but root and writes nothing to its root.
# scripts/images.sh builds it. busybox is only there for Docker's health check; Kubernetes asks over HTTP.
ARG PROGRAMS=hone-programs
ARG BASE=debian:bookworm-slim
FROM ${PROGRAMS} AS programs

FROM ${BASE} AS root
RUN dpkg --status busybox-static ca-certificates libssl3 >/dev/null 2>&1 \
  || { apt-get update && apt-get install --yes --no-install-recommends busybox-static ca-certificates libssl3; }
COPY deploy/rootfs.sh /rootfs.sh
COPY --from=programs /hone-backend /usr/bin/hone-backend
RUN sh /rootfs.sh /image /usr/bin/hone-backend /bin/busybox

FROM scratch
COPY --from=root /image/ /
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="hone-backend" \
      org.opencontainers.image.description="API and job machinery of Hone, self-hosted fine-tuning" \
      org.opencontainers.image.source="https://github.com/hone-ml/hone" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
ENV PATH=/usr/bin HONE_LISTEN=0.0.0.0:8700 LOG_FORMAT=json
USER 65532:65532
EXPOSE 8700
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s \
  CMD ["/bin/busybox", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8700/health"]
ENTRYPOINT ["/usr/bin/hone-backend"]
