package s3_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"cardinalsin/storage"
	"cardinalsin/storage/s3"
)

var errNoCredentials = errors.New("no credentials")

type failingCredentials struct{}

func (failingCredentials) Retrieve(context.Context) (aws.Credentials, error) {
	return aws.Credentials{}, errNoCredentials
}

func TestNowComesFromResponses(t *testing.T) {
	const ahead = 3 * time.Hour
	server := newScripted(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", time.Now().Add(ahead).UTC().Format(http.TimeFormat))
		failure(http.StatusForbidden, "AccessDenied")(w, r) // a refusal tells the time too
	})
	for name, first := range map[string]func(*s3.Store) error{
		"after another call": func(s *s3.Store) error {
			if _, _, err := s.Get(t.Context(), "k"); !errors.Is(err, storage.ErrPermission) {
				return err
			}
			return nil
		},
		"by a request of its own": func(s *s3.Store) error { _, err := s.Now(t.Context()); return err },
	} {
		t.Run(name, func(t *testing.T) {
			s := server.store(t)
			before := len(server.seen())
			if err := first(s); err != nil {
				t.Fatal(err)
			}
			last := time.Time{}
			for range 10 {
				now, err := s.Now(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if off := time.Until(now) - ahead; off.Abs() > 2*time.Second {
					t.Errorf("off by %v", off)
				}
				if now.Before(last) {
					t.Errorf("%v comes after %v", now, last)
				}
				last = now
			}
			if n := len(server.seen()) - before; n != 1 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

func TestNowWithoutDate(t *testing.T) {
	server := newScripted(t, func(w http.ResponseWriter, r *http.Request) { w.Header()["Date"] = nil })
	if _, err := server.store(t).Now(t.Context()); !errors.Is(err, storage.ErrStoreRefused) {
		t.Error(err)
	}
	server.Close()
	if _, err := server.store(t).Now(t.Context()); !errors.Is(err, storage.ErrUnavailable) {
		t.Error(err)
	}
}

func TestModTimeOfAWriteIsTheServers(t *testing.T) {
	at := time.Date(2031, 1, 2, 3, 4, 5, 0, time.UTC)
	server := newScripted(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", at.Format(http.TimeFormat))
		w.Header().Set("Etag", `"x"`)
	})
	info, err := server.store(t).PutIfAbsent(t.Context(), "k", nil)
	if err != nil || !info.ModTime.Equal(at) {
		t.Errorf("%v, %v", info.ModTime, err)
	}
}
