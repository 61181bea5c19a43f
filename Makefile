# Type `make` for a list of targets. Needed: Go, and a C compiler for the race detector.
# Everything else comes through the Go module proxy, at the versions in tools/go.mod.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

BEGAN := $(shell date +%s)

# The version that `make build` writes into the binary.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo development)

# Seconds for all fuzz targets together.
FUZZ_SECONDS ?= 50
SOAK_FUZZ_SECONDS ?= 14400

# What `make bench` and `make microbench` run.
ROUNDS ?= 7
CASES ?=
BENCH ?= .
BENCH_COUNT ?= 1
BENCH_PACKAGES ?= ./...

# In CI no cached result counts, and tests run in random order.
TEST_FLAGS ?= $(if $(CI),-count=1 -shuffle=on)

# Packages whose tests take longest start first, so that none of them runs alone at the end.
LONG_FIRST := ./tokenstore/etcdstore/... ./cmd/tokenward ./proxy ./tokenstore/boltstore ./admin/clients

# How many packages are tested at once: two more than there are processors, since
# many tests wait for an election of etcd, for a timeout or for the disk.
RACE_PACKAGES ?= $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) + 2)))

# Use the toolchain that is installed; never download another one silently.
export GOTOOLCHAIN := local

# What ships is compiled with the profile in cmd/tokenward/default.pgo, which `go build`
# finds by itself. For tests that would only compile every package twice; those of
# `make soak` are compiled as shipped.
test race allocations vet lint: export GOFLAGS += -pgo=off

LINT := bin/golangci-lint
BENCHSTAT := bin/benchstat
STEP := tools/step

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

.PHONY: build
build: ## Build the static binary bin/tokenward
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/tokenward ./cmd/tokenward

.PHONY: test
test: ## Vet, lint, run all tests with the race detector and each fuzz target for seconds (6 to 8 minutes on 2 processors)
	@$(STEP) modules $(MAKE) modules
	@$(STEP) vet go vet ./...
	@$(STEP) "build of the linter" $(MAKE) $(LINT)
	@$(STEP) lint $(LINT) run
	@$(STEP) "tests of allocations" $(MAKE) allocations
	@$(MAKE) race
	@$(STEP) fuzz tools/fuzz $(FUZZ_SECONDS)
	@printf '\n==> make test: fine after %d s\n' $$(($$(date +%s) - $(BEGAN)))

.PHONY: race
race: ## Run all tests with the race detector
	@command -v "$$(go env CC)" >/dev/null || { echo "the race detector needs a C compiler: apt-get install gcc libc6-dev" >&2; exit 1; }
	@$(STEP) "tests with the race detector" tools/raced go test -race -vet=off -timeout 9m -p $(RACE_PACKAGES) -parallel 4 $(TEST_FLAGS) $(LONG_FIRST) ./...

.PHONY: allocations
allocations: ## Run the tests that a request allocates nothing, which the race detector would falsify
	@out=$$(go test -vet=off $(TEST_FLAGS) -run Allocate ./proxy ./proxy/http1 2>&1) || { echo "$$out"; exit 1; }; echo "$$out"; \
	if grep -q 'no tests to run' <<<"$$out"; then echo 'a package has none of them: has a name changed?' >&2; exit 1; fi

.PHONY: modules
modules: ## Check go.mod against the imports, and the modules against go.sum
	@go mod verify
	@go mod tidy -diff || { echo 'go.mod and the imports differ: run `go mod tidy`' >&2; exit 1; }

.PHONY: lint
lint: $(LINT) ## Run the linters of .golangci.yml
	$(LINT) run

.PHONY: fmt
fmt: $(LINT) ## Format all Go files
	$(LINT) fmt

.PHONY: fuzz
fuzz: ## Fuzz all targets for FUZZ_SECONDS (50) in all
	tools/fuzz $(FUZZ_SECONDS)

.PHONY: soak
soak: ## Run the long tests: thousands of kills, millions of model steps, bodies of 10 GiB, hours of fuzzing
	@TOKENWARD_SOAK=1 $(STEP) "long tests" go test -pgo=cmd/tokenward/default.pgo -count=1 -timeout 12h -v ./...
	@$(STEP) "long fuzzing" tools/fuzz $(SOAK_FUZZ_SECONDS)

.PHONY: bench
bench: build ## Measure side by side with nginx, HAProxy and the standard reverse proxy (CASES=cpu,idle ROUNDS=7)
	go build -o bin/bench ./bench
	bin/bench -rounds $(ROUNDS) -cases '$(CASES)'

.PHONY: profile
profile: ## Record the profile that the program is compiled with, under the load of `make bench` (4 minutes)
	$(MAKE) build GOFLAGS=-pgo=off
	go build -o bin/bench ./bench
	bin/bench -profile cmd/tokenward/default.pgo

.PHONY: microbench
microbench: $(BENCHSTAT) ## Run the Go benchmarks that hold the promised numbers (BENCH=regexp BENCH_COUNT=6)
	@mkdir -p bin
	go test -pgo=cmd/tokenward/default.pgo -run '^$$' -bench '$(BENCH)' -benchmem -count $(BENCH_COUNT) -timeout 1h $(BENCH_PACKAGES) | tee bin/bench.txt
	@$(BENCHSTAT) bin/bench.txt

.PHONY: image
image: ## Build the container image tokenward:VERSION
	docker build --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) -t tokenward:$(VERSION) .

.PHONY: clean
clean: ## Remove what the other targets made
	rm -rf bin

# Tools are rebuilt only when their versions change.
$(LINT): tools/go.mod tools/go.sum
	cd tools && GOFLAGS=-mod=readonly go build -ldflags='-s -w' -o ../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

$(BENCHSTAT): tools/go.mod tools/go.sum
	cd tools && GOFLAGS=-mod=readonly go build -o ../$@ golang.org/x/perf/cmd/benchstat
