# The trainer for CPUs: by default a service that runs attempts (`serve`); `run` is one attempt, as a Kubernetes Job.
# Holds the small base model of this repository, to try the image alone (docs/guides/laptop.md). /scratch may be lost.
# scripts/images.sh builds it. busybox is only there for Docker's health check; Kubernetes asks over HTTP.
ARG PROGRAMS=hone-programs
ARG BASE=debian:bookworm-slim
FROM ${PROGRAMS} AS programs

FROM ${BASE} AS root
RUN dpkg --status busybox-static ca-certificates libssl3 >/dev/null 2>&1 \
  || { apt-get update && apt-get install --yes --no-install-recommends busybox-static ca-certificates libssl3; }
COPY deploy/rootfs.sh /rootfs.sh
COPY --from=programs /hone-trainer /usr/bin/hone-trainer
RUN sh /rootfs.sh /image /usr/bin/hone-trainer /bin/busybox \
  && mkdir -p /own/scratch
COPY assets/hone-tiny/ /image/usr/share/hone/models/hone-tiny/

FROM scratch
COPY --from=root /image/ /
COPY --from=root --chown=65532:65532 /own/ /
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="hone-trainer" \
      org.opencontainers.image.description="Trainer of Hone, self-hosted fine-tuning, for CPUs" \
      org.opencontainers.image.source="https://github.com/hone-ml/hone" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
ENV PATH=/usr/bin HONE_LISTEN=0.0.0.0:8702 LOG_FORMAT=json SCRATCH_DIR=/scratch
USER 65532:65532
EXPOSE 8702
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s \
  CMD ["/bin/busybox", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8702/health"]
ENTRYPOINT ["/usr/bin/hone-trainer"]
CMD ["serve"]
