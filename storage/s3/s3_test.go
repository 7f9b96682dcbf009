package s3_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"cardinalsin/internal/s3server"
	"cardinalsin/storage"
	"cardinalsin/storage/s3"
	"cardinalsin/storage/storetest"
)

func open(t *testing.T, server *s3server.Server, prefix string) *s3.Store {
	t.Helper()
	s, err := s3.Open(t.Context(), s3.Options{
		Bucket: server.Bucket, Prefix: prefix,
		Endpoint: server.Endpoint, Region: server.Region, PathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(server.AccessKey, server.SecretKey, ""),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformance(t *testing.T) {
	server := storetest.StartS3(t)
	var n atomic.Int64
	storetest.Run(t, func(t *testing.T) storage.Store {
		return open(t, server, fmt.Sprintf("some/prefix/%d", n.Add(1)))
	})
}
