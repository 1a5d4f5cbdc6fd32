# Causeway. 'make' alone says what there is.

VERSION ?= $(shell scripts/version 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
PROGRAMS := causeway-hub causeway-agent causeway

# Knobs, given as make NAME=VALUE.
COUNT    ?= 10
RUN      ?= .
RACE     ?= -race
FUZZTIME ?= 30s
KEEP     ?=
ROUNDS   ?= 10
SECONDS  ?= 2
MODE     ?= veth
LONG     ?=
ARCH     ?= amd64,arm64
KEY      ?= $(CAUSEWAY_RELEASE_KEY)
REAL      ?= 500
SIMULATED ?= 2000
STEADY    ?= 40

TESTRUN    := go run ./internal/testrun
STATICCHECK := go tool -modfile=tools/go.mod staticcheck
# The linter vets; a race build links faster without debug data, and traces stay as they are.
GOTEST     := -count=1 -vet=off -ldflags=-w
# A machine that one goroutine drives in simulated time, and a command that scripts start some hundred times: seven
# and twenty times slower with the race detector, so that make soak alone has it look.
NORACE     := causeway/tunnel/underlay/probe causeway/hub/cmd/causeway
UNIT        = $(filter-out $(NORACE),$(shell go list ./... | grep -v '^causeway/e2e'))

# In a clone that belongs to somebody else, as in many CI systems, git refuses to
# answer, and go build would fail over it.
ifneq ($(shell git status --porcelain >/dev/null 2>&1 && echo ok),ok)
export GOFLAGS := $(GOFLAGS) -buildvcs=false
endif

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help hooks deps build package docs test unit unit-build e2e demo demo-clean soak bench bench-services bench-state bench-scale interop-kernel services-kernel docker29-tools docker29 lint fmt fuzz clean

help: ## Show this
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

hooks: ## Have git format and vet what is staged before each commit
	@git config core.hooksPath scripts/hooks

deps: ## Install the Debian packages that demo and tests need, where missing (root)
	@scripts/deps

build: ## Build the three static programs into bin/
	@mkdir -p bin
	@for p in $(PROGRAMS); do \
	  case $$p in causeway-agent) d=./agent/cmd/$$p;; *) d=./hub/cmd/$$p;; esac; \
	  echo "build bin/$$p $(VERSION)"; \
	  CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/$$p $$d || exit 1; \
	done

bin/nats: tools/nats/go.mod tools/nats/go.sum
	@mkdir -p bin
	@echo "build bin/nats, the nats command line, for tests"
	@cd tools/nats && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o ../../bin/nats github.com/nats-io/natscli/nats

# A Docker Engine 29, and what it runs containers with, for tests. Its runc, which sets up a namespace in C, is
# without seccomp. Debian's is too old for it.
DOCKER29 := github.com/moby/moby/v2/cmd/dockerd github.com/moby/moby/v2/cmd/docker-proxy \
  github.com/containerd/containerd/v2/cmd/containerd github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2 \
  github.com/opencontainers/runc

bin/docker29/runc: tools/docker29/go.mod tools/docker29/go.sum
	@mkdir -p bin/docker29
	@cd tools/docker29 && v=$$(go list -m -f '{{.Version}}' github.com/moby/moby/v2) && for p in $(DOCKER29); do \
	  case $$p in */runc) c=1;; *) c=0;; esac; \
	  echo "build bin/docker29/$${p##*/}, for tests"; \
	  CGO_ENABLED=$$c go build -trimpath -tags 'no_btrfs no_devmapper no_zfs' -ldflags "-s -w -X github.com/moby/moby/v2/dockerversion.Version=$${v#v}" -o ../../bin/docker29/$${p##*/} $$p || exit 1; \
	done

bin/docker-debian/dockerd:
	@echo "fetch bin/docker-debian, Debian's Docker Engine, for tests"
	@mkdir -p bin/docker-debian; d=$$(mktemp -d) && trap "rm -r $$d" EXIT && chmod 777 $$d && cd $$d && apt-get download -qq docker.io containerd && \
	  for f in *.deb; do dpkg -x $$f . || exit 1; done && cp usr/bin/containerd usr/bin/containerd-shim-runc-v2 usr/sbin/docker-proxy usr/sbin/dockerd $(CURDIR)/bin/docker-debian/

docker29-tools: bin/docker29/runc bin/docker-debian/dockerd ## Build a Docker Engine 29 for tests into bin/docker29/ (6 minutes; Debian with a C compiler), and fetch Debian's

docker29: deps build docker29-tools ## Test agents beside a real Docker Engine 29, by both of its firewall backends, and Debian's (root)
	@go vet -tags docker29 ./e2e && $(STATICCHECK) -tags docker29 ./e2e
	@CAUSEWAY_DOCKER29=$(CURDIR)/bin/docker29 CAUSEWAY_DOCKER_DEBIAN=$(CURDIR)/bin/docker-debian CAUSEWAY_BIN=$(CURDIR)/bin \
	  go test $(GOTEST) -v -tags docker29 -timeout 30m -run '^TestDocker29Engine$$' ./e2e

package: ## Make the packages of a release in dist/: .deb, .rpm, OCI images, SBOMs, checksums, signatures (ARCH=amd64,arm64, KEY=FILE)
	@rm -rf dist
	@cd packaging && SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) go run . -version $(VERSION) -arch $(ARCH) -key "$(if $(KEY),$(abspath $(KEY)))" -out ../dist

docs: ## Generate what docs/ holds of the code
	@CAUSEWAY_UPDATE=1 go test -count=1 -run '^(TestReference|TestUnitScores|TestMetricsTable|TestAlertsTable|TestMendLedger|TestRooms)$$' ./agent ./agent/config ./internal/layering ./agent/doctor ./hub ./hub/bus ./hub/cmd/causeway ./hub/cmd/causeway-hub ./hub/doctor ./e2e

# The first half of the end-to-end cases waits more than it computes: lint and the build of the unit tests, which
# have no time limits, take what is left of the processors meanwhile.
test: deps build bin/nats ## Run all that CI runs: lint, unit tests with the race detector, end to end
	@log=$$(mktemp) && trap "rm -f $$log" EXIT; \
	chrt -i 0 $(MAKE) --no-print-directory lint unit-build >$$log 2>&1 & lint=$$!; \
	$(MAKE) --no-print-directory e2e; e2e=$$?; \
	wait $$lint; lint=$$?; cat $$log; \
	[ $$lint = 0 ] && [ $$e2e = 0 ] && $(MAKE) --no-print-directory unit

unit: ## Run the unit tests with the race detector (RACE= without; it needs a C compiler)
	@$(TESTRUN) -again 2 -ledger unit -- $(RACE) $(GOTEST) -timeout 10m $(UNIT)
	@$(TESTRUN) -again 2 -ledger unit-norace -- $(GOTEST) -timeout 10m $(NORACE)

unit-build:
	@echo "build the unit tests"; go test -exec true $(RACE) $(GOTEST) $(UNIT) >/dev/null

e2e: deps build bin/nats ## Run the real programs in network namespaces (root; RUN=REGEXP picks cases)
	@CAUSEWAY_BIN=$(CURDIR)/bin $(TESTRUN) -progress -again 2 $(if $(filter .,$(RUN)),-ledger e2e) -- $(GOTEST) -parallel 4 -timeout 40m -run '$(RUN)' ./e2e/...

demo: deps build ## Show it all on this machine (root; KEEP=1 leaves it running)
	@KEEP=$(KEEP) CAUSEWAY_BIN=$(CURDIR)/bin go run ./e2e/cmd/demo

demo-clean: ## Take away what 'make demo KEEP=1' left running (root)
	@go run ./e2e/cmd/demo -clean

soak: deps build bin/nats ## Repeat end-to-end cases, tests of hub and engine in full, and write results/ (root; COUNT=10, RUN=REGEXP)
	@CAUSEWAY_SOAK=1 CAUSEWAY_BIN=$(CURDIR)/bin $(TESTRUN) -repeat $(COUNT) -results results/soak-$$(date -u +%Y%m%dT%H%M%SZ).json \
	  -- -count=1 -timeout 60m -run '$(RUN)' ./e2e/... ./hub/... ./tunnel/engine/...
	@$(TESTRUN) -- -race -count=1 -timeout 60m -run '$(RUN)' $(NORACE)

bench: deps build ## Measure beside wireguard-go, write results/ (root; ROUNDS=10, SECONDS=2, MODE=veth|frames)
	@CAUSEWAY_BIN=$(CURDIR)/bin go run ./e2e/cmd/bench -rounds $(ROUNDS) -seconds $(SECONDS) -mode $(MODE)

bench-services: deps ## Measure services' addresses beside pods' own (root; ROUNDS=10, SECONDS=2)
	@go run ./e2e/cmd/bench-services -rounds $(ROUNDS) -seconds $(SECONDS)

bench-state: ## Measure a state of 10,000 nodes: transactions, netmaps, lists, relay (RUN=REGEXP)
	@go test -run '^$$' -bench '$(if $(filter .,$(RUN)),Large|Snapshot,$(RUN))' ./hub/state ./hub/plan ./hub/fleet ./hub/admin ./tunnel/relay

bench-scale: ## Measure one hub with many agents, write results/ (REAL=500, SIMULATED=2000, STEADY=40 seconds)
	@CGO_ENABLED=0 go run ./e2e/cmd/bench-scale -real $(REAL) -simulated $(SIMULATED) -seconds $(STEADY)

interop-kernel: ## Test the engine against a kernel's WireGuard in qemu (LONG=1 waits for rekeys)
	@LONG=$(LONG) scripts/interop-kernel

services-kernel: ## Run tests of services' data path on Debian's kernel in qemu (KERNEL=FILE.deb, RUN=REGEXP)
	@KERNEL=$(KERNEL) RUN='$(RUN)' scripts/services-kernel

lint: ## Check formatting, vet, staticcheck, layering and go.mod
	@echo "gofmt"; out=$$(gofmt -l -s .); if [ -n "$$out" ]; then echo "not gofmt'ed (make fmt):"; echo "$$out"; exit 1; fi
	@echo "go mod tidy"; go mod tidy -diff; cd packaging && go mod tidy -diff
	@echo "go vet"; go vet ./...; cd packaging && go vet .
	@echo "shellcheck"; if command -v shellcheck >/dev/null; then shellcheck packaging/install.sh packaging/files/scripts/* scripts/deps scripts/rootfs scripts/version scripts/vulncheck scripts/hooks/*; else echo "shellcheck: SKIPPED, it is not installed (make deps)"; fi
	@echo "govulncheck"; scripts/vulncheck
	@echo "staticcheck"; $(STATICCHECK) ./...
	@echo "layering"; go test -count=1 ./internal/layering

fmt: ## Format the code
	@gofmt -l -s -w .

fuzz: ## Fuzz every fuzz test in turn (FUZZTIME=30s each)
	@scripts/fuzz $(FUZZTIME)

clean: ## Remove what was built and measured: bin/, dist/ and results/
	@rm -rf bin dist results
