# CardinalSin. `make` lists what there is; `make test` is what the README names.
GO          ?= go
TOOLS       := $(CURDIR)/.tools
BIN         := $(CURDIR)/bin
SEED        ?=
FUZZTIME    ?= 20s
PKG         ?= ./...

VERSITYGW   := github.com/versity/versitygw/cmd/versitygw@v1.8.0
# AGPL: a program that tests run, never linked.
MINIO       := github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c
OTELBUILDER := go.opentelemetry.io/collector/cmd/builder@v0.160.0
PROMETHEUS  := github.com/prometheus/prometheus/cmd/prometheus@v0.316.0
PROMTOOL    := github.com/prometheus/prometheus/cmd/promtool@v0.316.0
VICTORIA    := github.com/VictoriaMetrics/VictoriaMetrics/app/victoria-metrics@v1.150.0

export CARDINAL_TOOLS := $(TOOLS)/bin

.DEFAULT_GOAL := help
.PHONY: test-promql test-promql-diff test-write-compliance interop-minio help build run test race lint fmt fuzz bench bench-log bench-read bench-write golden crash demo demo-s3 interop interop-engines interop-prometheus interop-write interop-read ci clean

help: ## list the targets
	@awk 'BEGIN{FS=":.*## "} /^[a-z0-9-]+:.*## /{printf "  %-20s %s\n",$$1,$$2}' $(MAKEFILE_LIST)

build: ## build both programs into bin/
	$(GO) build -o $(BIN)/cardinal ./cmd/cardinal
	CGO_ENABLED=0 $(GO) build -o $(BIN)/cardinal-writer ./cmd/cardinal-writer

run: build ## serve from ./cardinal-data
	$(BIN)/cardinal server

test: $(TOOLS)/bin/versitygw ## run all tests
	$(GO) test $(PKG)
	$(GO) test -count=1 ./internal/lint

test-promql: ## upstream's whole suite of PromQL over a table in the head, in files, and half compacted: passed/total
	@out=$$($(GO) test -count=1 -v -run '^TestPromQLBuiltin$$' ./api/prom); rc=$$?; \
	  printf '%s\n' "$$out" | grep -E 'files passed|compactions|^( *--- FAIL|FAIL|ok)'; exit $$rc

test-promql-diff: ## over a thousand queries, and parameters, label sets and their faults, against the HTTP API and an upstream Prometheus with the same samples: passed/total
	@out=$$($(GO) test -count=1 -v -run '^TestPromQLDiff' ./api/prom); rc=$$?; \
	  printf '%s\n' "$$out" | grep -E 'promql-diff|want |got  |promdiff.*_test.go|^( *--- FAIL|FAIL|ok)'; exit $$rc

race: $(TOOLS)/bin/versitygw ## run all tests under the race detector
	$(GO) test -race $(PKG)

lint: ## vet and linters; any finding fails
	$(GO) vet -stdmethods=false ./... # upstream's iterators have a Seek that is not io.Seeker's
	$(GO) vet -tags duckdb_arrow ./internal/bench/read
	$(GO) tool -modfile=tools/go.mod golangci-lint run ./...

fmt: ## format the code
	gofmt -w $$(git ls-files '*.go')

fuzz: ## fuzz every decoder for FUZZTIME each
	@set -e; $(GO) list ./... | while read -r pkg; do \
	  $(GO) test -list '^Fuzz' "$$pkg" | grep '^Fuzz' | while read -r f; do \
	    $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) "$$pkg"; done; done

bench: ## run the benchmarks
	$(GO) test -run '^$$' -bench . -benchmem $(PKG)

bench-log: $(TOOLS)/venv $(TOOLS)/bin/versitygw ## our log beside delta-rs and the Rust kernel: load, refresh, commit, checkpoint
	$(GO) build -o $(BIN)/bench-log ./internal/bench/log
	$(BIN)/bench-log -python $(TOOLS)/venv/bin/python $(BENCHFLAGS)

bench-write: build $(TOOLS)/bin/prometheus $(TOOLS)/bin/victoria-metrics ## our ingestion beside a Prometheus server and VictoriaMetrics: rate, latency, memory, churn; chunks beside arrow-go and parquet-go; DoPut
	$(GO) build -o $(BIN)/bench-write ./internal/bench/write
	$(BIN)/bench-write -cardinal $(BIN)/cardinal-writer -prometheus $(TOOLS)/bin/prometheus -victoria $(TOOLS)/bin/victoria-metrics $(BENCHFLAGS)
	$(GO) test -run '^$$' -bench Peers -benchtime 1x ./chunk
	$(GO) test -run '^$$' -bench DoPut -benchtime 5x ./api/flight

bench-read: $(TOOLS)/bin/victoria-metrics ## our queries beside Prometheus' TSDB, VictoriaMetrics and plain DuckDB: PromQL, label values, cold reads, TSBS, memory; keeps its data in ./cardinal-bench
	$(GO) build -tags duckdb_arrow -o $(BIN)/bench-read ./internal/bench/read
	$(BIN)/bench-read -victoria $(TOOLS)/bin/victoria-metrics $(BENCHFLAGS)

# The programs that are killed pass crash points; those that ship do not.
crash: $(TOOLS)/bin/versitygw ## kill -9 the real programs 112 times under all protocols, and take their store away: acknowledged = stored, once
	$(GO) build -tags crashpoints -o $(BIN)/crash/ ./cmd/cardinal ./cmd/cardinal-writer
	$(GO) test -count=1 -tags crash -v -timeout 20m ./internal/crash -args -binary $(BIN)/crash/cardinal -writer $(BIN)/crash/cardinal-writer $(if $(SEED),-seed $(SEED))

demo: build ## this machine's metrics: written, queried, travelled, compacted, vacuumed, checked
	$(BIN)/cardinal demo

demo-s3: build $(TOOLS)/bin/versitygw ## the same on an S3 server
	$(GO) run ./internal/interop/s3 $(BIN)/cardinal demo

interop: interop-engines interop-prometheus interop-write interop-read ## other people's programs against ours

test-write-compliance: build ## upstream's suite for remote-write receivers (1.0 and 2.0), and everything it wrote read back
	$(GO) run ./internal/interop/compliance -cardinal $(BIN)/cardinal -go $(GO)

interop-prometheus: build $(TOOLS)/bin/prometheus ## a real Prometheus sends to us for 60 s; both sides count
	$(GO) run ./internal/interop/prometheus -cardinal $(BIN)/cardinal -prometheus $(TOOLS)/bin/prometheus

interop-write: build $(TOOLS)/bin/prometheus $(TOOLS)/bin/otelcol $(TOOLS)/venv-write ## Prometheus agents, OpenTelemetry SDK and Collector, InfluxDB clients and pyarrow send to us; both sides count
	$(GO) run ./internal/interop/write -cardinal $(BIN)/cardinal -prometheus $(TOOLS)/bin/prometheus -otelcol $(TOOLS)/bin/otelcol -python $(TOOLS)/venv-write/bin/python

interop-read: build $(TOOLS)/bin/prometheus $(TOOLS)/bin/promtool $(TOOLS)/venv-read ## Grafana's calls, promtool, ADBC over Flight SQL and DuckDB's delta extension: the same rows everywhere
	$(GO) run ./internal/interop/read -cardinal $(BIN)/cardinal -prometheus $(TOOLS)/bin/prometheus -promtool $(TOOLS)/bin/promtool -python $(TOOLS)/venv-read/bin/python

interop-engines: build $(TOOLS)/venv $(TOOLS)/jars $(TOOLS)/bin/versitygw ## delta-rs, Spark, DuckDB and Polars read our tables and we theirs, on disk and on S3
	$(GO) build -o $(BIN)/interop-tables ./internal/interop/tables
	$(GO) run ./internal/interop/s3 $(TOOLS)/venv/bin/python internal/interop/matrix.py \
	  --cardinal $(BIN)/cardinal --tables $(BIN)/interop-tables --jars $(TOOLS)/jars

golden: ## tables of other engines: files, versions and rows as the manifests say
	cd internal/golden && $(GO) test -count=1 -timeout 20m

interop-minio: $(TOOLS)/bin/minio ## the S3 tests, sixteen processes included, on MinIO
	CARDINAL_S3=minio CARDINAL_SEED=$(SEED) $(GO) test -count=1 -v -run 'TestConformance|ThroughFaults|TestOpenS3|TestSixteenProcesses' ./storage/s3 ./storage/storeurl ./txlog

ci: ## all that must hold before a change lands
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(MAKE) build lint test demo

clean: ## remove what was built
	rm -rf $(BIN) $(TOOLS)

$(TOOLS)/bin/versitygw:
	GOBIN=$(TOOLS)/bin $(GO) install $(VERSITYGW)

$(TOOLS)/bin/minio:
	GOBIN=$(TOOLS)/bin $(GO) install -p=1 $(MINIO)

$(TOOLS)/bin/prometheus:
	GOBIN=$(TOOLS)/bin $(GO) install -tags remove_all_sd $(PROMETHEUS)

$(TOOLS)/bin/promtool:
	GOBIN=$(TOOLS)/bin $(GO) install -p=1 -tags remove_all_sd $(PROMTOOL)

$(TOOLS)/bin/victoria-metrics:
	GOBIN=$(TOOLS)/bin $(GO) install -p=1 $(VICTORIA)

# Its own builder makes it of the parts that the file names.
$(TOOLS)/bin/otelcol: internal/interop/otelcol.yaml
	$(GO) run $(OTELBUILDER) --config $<
	mkdir -p $(TOOLS)/bin && cp $(TOOLS)/otelcol/otelcol $@

$(TOOLS)/venv-write: internal/interop/requirements-write.txt
	rm -rf $@ $@.new
	python3 -m venv --copies $@.new
	$@.new/bin/python -m pip install -q -r $<
	mv $@.new $@ && touch $@

$(TOOLS)/venv-read: internal/interop/requirements-read.txt
	rm -rf $@ $@.new
	python3 -m venv --copies $@.new
	$@.new/bin/python -m pip install -q -r $<
	mv $@.new $@ && touch $@

# The engines' versions are pinned in these two files, and nowhere else.
$(TOOLS)/venv: internal/interop/requirements.txt
	rm -rf $@ $@.new
	python3 -m venv --copies $@.new
	$@.new/bin/python -m pip install -q -r $<
	mv $@.new $@ && touch $@

$(TOOLS)/jars: internal/interop/pom.xml
	rm -rf $@ $@.new
	mvn -B -q -ntp -f $< dependency:copy-dependencies -DoutputDirectory=$@.new
	mv $@.new $@ && touch $@
