# Magnetar. 'make help' lists the targets.
SHELL := /bin/bash
GO ?= go
BIN := bin
TOOLS := $(BIN)/tools

# The race detector needs a C compiler. RACE=required fails without one.
CC_FOUND := $(shell command -v $${CC:-cc} 2>/dev/null || command -v gcc 2>/dev/null)
RACE ?= auto
ifeq ($(RACE)$(CC_FOUND),required)
$(error RACE=required, but no C compiler was found)
endif
ifneq ($(CC_FOUND),)
ifneq ($(RACE),off)
RACE_FLAG := -race
RACE_ENV := CGO_ENABLED=1
endif
endif
RACE_ENV ?= CGO_ENABLED=0

TEST_TIMEOUT ?= 10m
FUZZTIME ?= 10s
GO_FILES = $$(git ls-files '*.go')

.PHONY: help
help: ## this list (at once)
	@echo "None of these needs root. What builds takes a minute longer from an empty cache."
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## the static binary, bin/magnetar (a minute from an empty cache)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(BIN)/magnetar ./cmd/magnetar

.PHONY: run
run: build ## a standalone node on loopback, data in ./magnetar-data (ready in a second once built, runs until Ctrl-C)
	@exec $(BIN)/magnetar standalone

.PHONY: test
test: ## the suite, with -race where there is a C compiler (up to 10 minutes)
	$(RACE_ENV) $(GO) test $(RACE_FLAG) -timeout $(TEST_TIMEOUT) ./...
	@$(if $(RACE_FLAG),echo "tests passed under the race detector",echo "tests passed WITHOUT the race detector: no C compiler was found")

.PHONY: generate
generate: $(TOOLS)/protogen ## Go code of the .proto files (seconds once the tools are built)
	$(TOOLS)/protogen proto $(TOOLS)/protoc-gen-go $(TOOLS)/protoc-gen-go-grpc

$(TOOLS)/protogen: internal/tools/go.mod internal/tools/go.sum internal/tools/protogen/main.go
	@mkdir -p $(TOOLS)
	cd internal/tools && CGO_ENABLED=0 $(GO) build -o ../../$(TOOLS)/ ./protogen \
		google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc

$(TOOLS)/staticcheck: internal/tools/go.mod internal/tools/go.sum
	@mkdir -p $(TOOLS)
	cd internal/tools && CGO_ENABLED=0 $(GO) build -o ../../$(TOOLS)/ honnef.co/go/tools/cmd/staticcheck

.PHONY: lint
lint: $(TOOLS)/staticcheck ## gofmt, go vet, staticcheck, tidy module files (two minutes cold)
	@unformatted=$$(gofmt -l $(GO_FILES)); if [ -n "$$unformatted" ]; then \
		echo "not gofmt-ed:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(TOOLS)/staticcheck ./...
	$(GO) mod tidy -diff

CLUSTER := $(GO) run ./e2e/cmd/cluster -dir .run/cluster -binary $(BIN)/magnetar

.PHONY: cluster
cluster: build ## a cluster of processes on loopback (ready in seconds once built, runs until Ctrl-C); PORT_BASE=N for fixed ports
	@$(CLUSTER) -port-base $(or $(PORT_BASE),0) up

.PHONY: cluster-start
cluster-start: ## start one process of a running cluster again: P=broker-2 (seconds)
	@$(if $(P),,echo "which process? P=NAME, a folder of .run/cluster: make cluster-start P=broker-2" >&2; exit 2)
	@$(CLUSTER) start $(P)

.PHONY: cluster-down
cluster-down: ## stop a cluster, whoever started it (seconds)
	@$(CLUSTER) down

.PHONY: rules-check
rules-check: ## break each rule of docs/ledger-protocol.md in a scratch copy, expect its test to fail (minutes)
	$(GO) run ./e2e/cmd/rulescheck

.PHONY: explore
explore: ## the ledger protocol in every order of events, in small worlds, and what each broken rule loses (3 minutes, 5 GB of memory); EXPLORE_FLAGS=-only=NAME
	@$(GO) run ./e2e/cmd/explore $(EXPLORE_FLAGS)

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME each (10s: eleven minutes in all, longer from an empty cache)
	@set -e; grep -ro --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | sort | while IFS=: read -r file target; do \
		echo "== $$(dirname $$file) $${target#func }"; \
		$(GO) test -run '^$$' -fuzz "^$${target#func }\$$" -fuzztime $(FUZZTIME) "$$(dirname $$file)"; \
	done

.PHONY: bench-bare
bench-bare: ## what this machine allows: the hops of a publish without any logic (20 seconds)
	$(GO) build -o $(TOOLS)/bare ./e2e/cmd/bare
	@$(TOOLS)/bare $(BARE_FLAGS)

.PHONY: budgets
budgets: build ## which budgets of one node are kept, beside the bare chain (15 minutes, 12 GB of disk, on a machine that does nothing else)
	$(GO) build -o $(TOOLS)/bare ./e2e/cmd/bare
	@$(GO) run ./e2e/cmd/budgets $(BUDGETS_FLAGS)

.PHONY: e2e
e2e: ## processes killed 21 times a shape, a broker stopped 10 times, bookies down, a disk filled, under load (4 to 6 minutes)
	MAGNETAR_KILLS=21 MAGNETAR_PAUSES=10 MAGNETAR_DISK=1 $(GO) test -count=1 -timeout 40m -v -run "^Test(Kill|Pause|Bookies|Disk)" ./e2e

.PHONY: history
history: ## the history checker against 500 histories, each clean and then spoilt with every anomaly (half a minute; two beside other work)
	MAGNETAR_HISTORIES=500 $(GO) test -count=1 -run '^TestGenerated' ./e2e/history

.PHONY: sim
sim: ## whole clusters in one process under faults, a seed each; SEED=1 SEEDS=200 (a second of CPU a seed); a failure names the seed
	@set -o pipefail; MAGNETAR_SIM_SEED=$(or $(SEED),1) MAGNETAR_SIM_SEEDS=$(or $(SEEDS),$(if $(SEED),1,200)) $(GO) test -count=1 -timeout 12h -v -run '^TestSeeds$$' ./e2e/sim | grep -v '^ *\(=== \|--- PASS\)'

.PHONY: demo
demo: build ## Go's sources through a cluster with kills, every file checked (80 seconds); DEMO_FLAGS=-rate=N
	@$(GO) run ./e2e/cmd/demo -dir .run/demo -binary $(BIN)/magnetar $(DEMO_FLAGS)

.PHONY: power-cuts
power-cuts: ## cut a node's power 200 times under load, and once more without fsync, which must lose data (a minute)
	MAGNETAR_POWERCUTS=200 $(GO) test -count=1 -timeout 60m -v -run '^TestPowerCut' ./internal/standalone
