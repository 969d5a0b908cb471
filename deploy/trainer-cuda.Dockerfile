# The trainer for NVIDIA GPUs and CPUs. PROGRAMS must hold a hone-trainer built with the feature `cuda` and the loaders
# of scripts/setup-cuda.sh (docs/training/cuda.md): it looks for CUDA's libraries when it needs them. CUDA is where they
# are taken from; the driver comes from the node, by NVIDIA's container toolkit.
# scripts/images.sh trainer-cuda builds it. busybox is only there for Docker's health check.
ARG CUDA=nvidia/cuda:13.0.1-runtime-ubuntu24.04
ARG PROGRAMS=hone-programs
ARG BASE=debian:bookworm-slim
FROM ${CUDA} AS cuda
FROM ${PROGRAMS} AS programs

FROM ${BASE} AS root
RUN dpkg --status busybox-static ca-certificates libssl3 >/dev/null 2>&1 \
  || { apt-get update && apt-get install --yes --no-install-recommends busybox-static ca-certificates libssl3; }
COPY deploy/rootfs.sh /rootfs.sh
COPY --from=programs /hone-trainer /usr/bin/hone-trainer
RUN sh /rootfs.sh /image /usr/bin/hone-trainer /bin/busybox \
  && mkdir -p /own/scratch

FROM scratch
COPY --from=root /image/ /
COPY --from=root --chown=65532:65532 /own/ /
COPY --from=cuda /usr/local/cuda/lib64/libcublas.so.13 /usr/local/cuda/lib64/libcublasLt.so.13 /usr/local/cuda/lib64/libcurand.so.10 /usr/local/cuda/lib64/
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="hone-trainer-cuda" \
      org.opencontainers.image.description="Trainer of Hone, self-hosted fine-tuning, for NVIDIA GPUs" \
      org.opencontainers.image.source="https://github.com/hone-ml/hone" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
# What NVIDIA's toolkit puts into the container, and where it puts it.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENV LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu:/usr/lib64:/usr/local/nvidia/lib64 CUDA_LIB_DIR=/usr/local/cuda/lib64
ENV PATH=/usr/bin HONE_LISTEN=0.0.0.0:8702 LOG_FORMAT=json SCRATCH_DIR=/scratch
USER 65532:65532
EXPOSE 8702
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s \
  CMD ["/bin/busybox", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8702/health"]
ENTRYPOINT ["/usr/bin/hone-trainer"]
CMD ["serve"]
