# The image holds the static binary, the certificates of public authorities, and an
# empty folder for data; no shell, no package manager, nothing else.
#
#   docker build --build-arg VERSION=1.2.3 --build-arg REVISION=$(git rev-parse HEAD) -t tokenward .
#
# A test checks this file against what deploy/README.md promises.

FROM --platform=$BUILDPLATFORM golang:1.26.8-bookworm AS build
WORKDIR /src
# Modules first: this layer is rebuilt only when they change.
COPY go.mod go.sum ./
RUN go mod download && go mod verify
COPY . .
ARG VERSION=development
ARG REVISION=unknown
ARG TARGETOS
ARG TARGETARCH
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH GOTOOLCHAIN=local \
    go build -trimpath -ldflags "-s -w -X main.version=$VERSION -X main.revision=$REVISION" -o /out/tokenward ./cmd/tokenward \
 && mkdir -m 0700 /out/data

FROM scratch
ARG VERSION=development
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tokenward" \
      org.opencontainers.image.description="Lets a request through to an HTTP API only when its API token allows it, and manages those tokens" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/tokenward /tokenward
# A new volume takes the owner of the folder it is put on.
COPY --from=build --chown=65532:65532 /out/data /data
# By number, so that runAsNonRoot can be checked without a passwd file.
USER 65532:65532
# Where tokenstore.path and audit.path are, unless the configuration says otherwise.
WORKDIR /data
VOLUME ["/data"]
EXPOSE 8080 8081 8082
HEALTHCHECK --interval=10s --timeout=6s --start-period=10s --retries=3 CMD ["/tokenward", "health"]
# SIGTERM drains: allow more than proxy.timeouts.drain before the kill.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/tokenward"]
CMD ["serve", "--config", "/etc/tokenward/tokenward.yaml"]
