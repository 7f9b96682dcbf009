package storetest_test

import (
	"testing"

	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/mem"
	"cardinalsin/storage/meter"
	"cardinalsin/storage/retry"
	"cardinalsin/storage/storetest"
)

func TestMem(t *testing.T) {
	storetest.Run(t, func(*testing.T) storage.Store { return mem.New(mem.Options{}) })
}

func TestMemContentETags(t *testing.T) {
	storetest.Run(t, func(*testing.T) storage.Store { return mem.New(mem.Options{ContentETags: true}) })
}

func TestDecorators(t *testing.T) {
	for name, decorate := range map[string]func(storage.Store) storage.Store{
		"fault": func(s storage.Store) storage.Store { return fault.New(s) },
		"meter": func(s storage.Store) storage.Store { return meter.New(s, meter.Options{}) },
		"retry": func(s storage.Store) storage.Store { return retry.New(s, retry.Options{}) },
	} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(*testing.T) storage.Store { return decorate(mem.New(mem.Options{})) })
		})
	}
}
