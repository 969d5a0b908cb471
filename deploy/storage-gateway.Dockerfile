# The storage gateway: the only holder of S3 keys. Without S3_ENDPOINT it is an S3 server itself, on /data.
# scripts/images.sh builds it. busybox is only there for Docker's health check; Kubernetes asks over HTTP.
ARG PROGRAMS=hone-programs
ARG BASE=debian:bookworm-slim
FROM ${PROGRAMS} AS programs

FROM ${BASE} AS root
RUN dpkg --status busybox-static ca-certificates libssl3 >/dev/null 2>&1 \
  || { apt-get update && apt-get install --yes --no-install-recommends busybox-static ca-certificates libssl3; }
COPY deploy/rootfs.sh /rootfs.sh
COPY --from=programs /hone-gateway /usr/bin/hone-gateway
RUN sh /rootfs.sh /image /usr/bin/hone-gateway /bin/busybox \
  && mkdir -p /own/data

FROM scratch
COPY --from=root /image/ /
COPY --from=root --chown=65532:65532 /own/ /
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="hone-storage-gateway" \
      org.opencontainers.image.description="Storage gateway of Hone, self-hosted fine-tuning" \
      org.opencontainers.image.source="https://github.com/hone-ml/hone" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
ENV PATH=/usr/bin HONE_LISTEN=0.0.0.0:8701 LOG_FORMAT=json DATA_DIR=/data
USER 65532:65532
EXPOSE 8701
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s \
  CMD ["/bin/busybox", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8701/health"]
ENTRYPOINT ["/usr/bin/hone-gateway"]
