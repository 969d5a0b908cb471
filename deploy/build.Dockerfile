# Hone's programs, built from this checkout, and nothing else: the image that the other files here take them from
# (argument PROGRAMS). scripts/images.sh makes the same image of programs that were built on the machine.
# The web UI is the one that `make web` left in web/dist.
#
#   make web && docker build --file deploy/build.Dockerfile --tag hone-programs .
ARG RUST=rust:1.95-bookworm
FROM ${RUST} AS build
RUN apt-get update && apt-get install --yes --no-install-recommends libssl-dev mold pkg-config
WORKDIR /source
COPY . .
RUN cargo build --release --locked --workspace --bins

FROM scratch
COPY --from=build /source/target/release/hone /source/target/release/hone-backend /source/target/release/hone-gateway /source/target/release/hone-trainer /
