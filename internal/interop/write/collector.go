package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"cardinalsin/internal/interop/process"
)

const collectorConfig = `
receivers:
  otlp/http: {protocols: {grpc: {endpoint: '%[1]s'}}}
  otlp/grpc: {protocols: {grpc: {endpoint: '%[2]s'}}}
exporters:
  otlp_http: {endpoint: 'http://%[3]s'}
  otlp_grpc: {endpoint: '%[4]s', tls: {insecure: true}}
service:
  telemetry: {metrics: {level: none}, logs: {level: warn}}
  pipelines:
    metrics/http: {receivers: [otlp/http], exporters: [otlp_http]}
    metrics/grpc: {receivers: [otlp/grpc], exporters: [otlp_grpc]}
`

// collector is an OpenTelemetry Collector that passes on what it is sent.
type collector struct {
	process *process.Process
	// toHTTP and toGRPC are where it listens for what it passes on so.
	toHTTP, toGRPC string
}

func startCollector(otelcol, dir, http, grpc string) (*collector, error) {
	var c collector
	var err error
	for _, address := range []*string{&c.toHTTP, &c.toGRPC} {
		if *address, err = process.FreeAddress(); err != nil {
			return nil, err
		}
	}
	conf := filepath.Join(dir, "otelcol.yaml")
	if err := os.WriteFile(conf, fmt.Appendf(nil, collectorConfig, c.toHTTP, c.toGRPC, http, grpc), 0o600); err != nil {
		return nil, err
	}
	if c.process, err = process.Start(otelcol, "--config", conf); err != nil {
		return nil, err
	}
	if err := process.AwaitListening(context.Background(), c.toHTTP, c.toGRPC); err != nil {
		return nil, errors.Join(err, c.process.Stop())
	}
	return &c, nil
}
