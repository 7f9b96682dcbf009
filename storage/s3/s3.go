// Package s3 is a store in a bucket of S3, or of a server that speaks its
// protocol.
//
// It stands beside the other backends. A conditional put is one HTTP request
// with If-None-Match: * or If-Match: it is sent once, whatever comes back. No
// other call is repeated here either; storage/retry does that, for the calls
// that may be. Errors are typed by HTTP status and S3 error code; what leaves
// open whether a write was applied is storage.ErrUnknownOutcome.
//
// The clock is the Date header of the responses (RFC 9110, 6.6.1), carried on
// by the local monotonic clock.
//
// It must never fall back from a conditional put to another, and never take a
// missing bucket for a missing object.
package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"

	"cardinalsin/storage"
)

// maxKeyBytes bounds the whole key, prefix included (S3 API).
const maxKeyBytes = 1024

// readAhead is how much memory a Get allots on the word of a response's
// header alone; beyond it the buffer grows with what arrives.
const readAhead = 8 << 20

// Options say which bucket and how to reach it. Bucket is required.
type Options struct {
	Bucket string
	// Prefix is put before every key, with a slash between; it may be empty.
	Prefix string
	// Endpoint is the server's URL; empty means AWS.
	Endpoint string
	// Region is the bucket's; empty means that of the AWS configuration
	// (environment, profile), or us-east-1 where an Endpoint is given.
	Region string
	// PathStyle puts the bucket into the path of the URL and not into its
	// host name.
	PathStyle bool
	// Credentials sign the requests; default the AWS chain (environment,
	// profile, role).
	Credentials aws.CredentialsProvider
	// ConnectTimeout bounds the setting up of a connection, and of TLS on it;
	// default 5 s.
	ConnectTimeout time.Duration
	// StallTimeout is how long a request may make no progress: no byte of its
	// body taken, no header and no byte of the response come. Default 30 s. A
	// long transfer that goes on is not bounded but by its context.
	StallTimeout time.Duration
}

// EnsureDefaults fills what is not set.
func (o *Options) EnsureDefaults() {
	if o.ConnectTimeout <= 0 {
		o.ConnectTimeout = 5 * time.Second
	}
	if o.StallTimeout <= 0 {
		o.StallTimeout = 30 * time.Second
	}
}

// Validate reports options that can reach no bucket.
func (o *Options) Validate() error {
	if o.Bucket == "" {
		return errors.New("s3: no bucket")
	}
	if o.Prefix != "" {
		if err := storage.ValidateKey(o.Prefix); err != nil {
			return fmt.Errorf("s3: prefix: %w", err)
		}
		if n := len(o.Prefix) + 1 + storage.MaxKeyBytes; n > maxKeyBytes {
			return fmt.Errorf("s3: prefix of %d bytes leaves no room for keys of %d", len(o.Prefix), storage.MaxKeyBytes)
		}
	}
	return nil
}

// Store is a storage.Store in a bucket. Its methods may be called
// concurrently.
type Store struct {
	client *s3.Client
	bucket string
	prefix string // empty, or ends with a slash
	stall  time.Duration
	clock  clock
}

var _ storage.Store = (*Store)(nil)

// Open returns the store. It reads the AWS configuration from the environment
// and files, and makes no request to the bucket.
func Open(ctx context.Context, opts Options) (*Store, error) {
	opts.EnsureDefaults()
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	cfg, err := config.LoadDefaultConfig(ctx, func(l *config.LoadOptions) error {
		l.Region = opts.Region
		l.Credentials = opts.Credentials
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("s3: load AWS configuration: %w", err)
	}
	if cfg.Region == "" {
		if opts.Endpoint == "" {
			return nil, errors.New("s3: no region is configured")
		}
		cfg.Region = "us-east-1" // what servers other than AWS mostly expect
	}
	s := &Store{bucket: opts.Bucket, prefix: opts.Prefix, stall: opts.StallTimeout}
	if s.prefix != "" {
		s.prefix += "/"
	}
	sender := s.httpClient(cfg, opts.ConnectTimeout)
	s.client = s3.NewFromConfig(cfg, func(o *s3.Options) {
		if opts.Endpoint != "" {
			o.BaseEndpoint = aws.String(opts.Endpoint)
		}
		o.UsePathStyle = opts.PathStyle
		o.HTTPClient = sender
		o.Retryer = aws.NopRetryer{}
		o.RetryMaxAttempts = 0   // would wrap the Retryer
		o.Logger = logging.Nop{} // what matters is in the errors
		// Many servers know no trailing checksums; TLS and the signature of
		// the payload guard the bytes.
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
	})
	return s, nil
}

// httpClient is the SDK's, with its certificates and proxy, but such that one
// call is one request: no redirects are followed, and no HTTP/2, whose
// transport repeats requests of its own accord.
func (s *Store) httpClient(cfg aws.Config, connect time.Duration) *transport {
	builder, ok := cfg.HTTPClient.(*awshttp.BuildableClient)
	if !ok {
		builder = awshttp.NewBuildableClient()
	}
	tr := builder.WithDialerOptions(func(d *net.Dialer) { d.Timeout = connect }).GetTransport()
	tr.TLSHandshakeTimeout = connect
	tr.ForceAttemptHTTP2 = false
	tr.Protocols = new(http.Protocols)
	tr.Protocols.SetHTTP1(true)
	tr.MaxIdleConnsPerHost = 64 // ranged reads come in bursts
	// Below the idle time of common servers and proxies: a connection that
	// the server drops as we use it is an unknown outcome.
	tr.IdleConnTimeout = 15 * time.Second
	return &transport{
		clock: &s.clock,
		client: &http.Client{
			Transport:     tr,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// Get implements storage.Store.
func (s *Store) Get(ctx context.Context, key string) ([]byte, storage.ObjectInfo, error) {
	data, info, err := s.get(ctx, key)
	if err != nil {
		return nil, storage.ObjectInfo{}, fmt.Errorf("get %q: %w", key, err)
	}
	return data, info, nil
}

func (s *Store) get(ctx context.Context, key string) ([]byte, storage.ObjectInfo, error) {
	if err := check(ctx, key); err != nil {
		return nil, storage.ObjectInfo{}, err
	}
	c := s.begin(ctx, storage.OpGet)
	defer c.end()
	out, err := s.client.GetObject(c.ctx, &s3.GetObjectInput{Bucket: &s.bucket, Key: aws.String(s.prefix + key)})
	if err != nil {
		return nil, storage.ObjectInfo{}, c.classify(err)
	}
	if out.ContentLength == nil {
		return nil, storage.ObjectInfo{}, errors.Join(errNoLength, out.Body.Close())
	}
	data, err := readBody(out.Body, *out.ContentLength)
	if err != nil {
		return nil, storage.ObjectInfo{}, c.classify(err)
	}
	info := storage.ObjectInfo{Key: key, Size: int64(len(data)), ModTime: aws.ToTime(out.LastModified), ETag: storage.ETag(aws.ToString(out.ETag))}
	if info.ETag == "" || info.ModTime.IsZero() {
		return nil, storage.ObjectInfo{}, fmt.Errorf("%w: a response without ETag or Last-Modified", storage.ErrStoreRefused)
	}
	return data, info, nil
}

// errNoLength: where only the end of the connection ends a body, a part of it
// would pass for all of it.
var errNoLength = fmt.Errorf("%w: a response without Content-Length", storage.ErrStoreRefused)

// readBody reads and closes a body whose length its header gives, which
// net/http enforces.
func readBody(body io.ReadCloser, length int64) ([]byte, error) {
	var buf bytes.Buffer
	buf.Grow(int(min(max(length, 0), readAhead)) + bytes.MinRead)
	_, err := buf.ReadFrom(body)
	if err = errors.Join(err, body.Close()); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// GetRange implements storage.Store.
func (s *Store) GetRange(ctx context.Context, key string, offset, length int64) ([]byte, error) {
	data, err := s.getRange(ctx, key, offset, length)
	if err != nil {
		return nil, fmt.Errorf("get range of %q, offset %d, length %d: %w", key, offset, length, err)
	}
	return data, nil
}

func (s *Store) getRange(ctx context.Context, key string, offset, length int64) ([]byte, error) {
	if err := check(ctx, key); err != nil {
		return nil, err
	}
	if offset < 0 || length < 1 || offset+length < 0 {
		return nil, storage.ErrInvalidRange
	}
	c := s.begin(ctx, storage.OpGetRange)
	defer c.end()
	out, err := s.client.GetObject(c.ctx, &s3.GetObjectInput{
		Bucket: &s.bucket,
		Key:    aws.String(s.prefix + key),
		Range:  aws.String(fmt.Sprintf("bytes=%d-%d", offset, offset+length-1)),
	})
	if err != nil {
		return nil, c.classify(err)
	}
	// A server that knows no ranges sends the whole object, with no
	// Content-Range; one that ends early sends what there is.
	got := aws.ToString(out.ContentRange)
	switch {
	case !strings.HasPrefix(got, fmt.Sprintf("bytes %d-", offset)):
		err = fmt.Errorf("%w: asked for bytes from %d, got range %q", storage.ErrStoreRefused, offset, got)
	case out.ContentLength == nil:
		err = errNoLength
	case *out.ContentLength < length:
		err = fmt.Errorf("%w: got range %q", storage.ErrInvalidRange, got)
	case *out.ContentLength > length:
		err = fmt.Errorf("%w: asked for %d bytes, got range %q", storage.ErrStoreRefused, length, got)
	}
	if err != nil {
		return nil, errors.Join(err, out.Body.Close())
	}
	data, err := readBody(out.Body, length)
	if err != nil {
		return nil, c.classify(err)
	}
	return data, nil
}

// Put implements storage.Store.
func (s *Store) Put(ctx context.Context, key string, body io.ReadSeeker) (storage.ObjectInfo, error) {
	size, err := body.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = body.Seek(0, io.SeekStart)
	}
	if err != nil {
		return storage.ObjectInfo{}, fmt.Errorf("put %q: rewind body: %w", key, err)
	}
	info, err := s.put(ctx, storage.OpPut, key, size, body, &s3.PutObjectInput{})
	if err != nil {
		return storage.ObjectInfo{}, fmt.Errorf("put %q: %w", key, err)
	}
	return info, nil
}

// PutIfAbsent implements storage.Store.
func (s *Store) PutIfAbsent(ctx context.Context, key string, data []byte) (storage.ObjectInfo, error) {
	in := &s3.PutObjectInput{IfNoneMatch: aws.String("*")}
	info, err := s.put(ctx, storage.OpPutIfAbsent, key, int64(len(data)), bytes.NewReader(data), in)
	if err != nil {
		return storage.ObjectInfo{}, fmt.Errorf("put %q if absent: %w", key, err)
	}
	return info, nil
}

// PutIfMatch implements storage.Store.
func (s *Store) PutIfMatch(ctx context.Context, key string, data []byte, etag storage.ETag) (storage.ObjectInfo, error) {
	info, err := s.putIfMatch(ctx, key, data, etag)
	if err != nil {
		return storage.ObjectInfo{}, fmt.Errorf("put %q if match %s: %w", key, etag, err)
	}
	return info, nil
}

func (s *Store) putIfMatch(ctx context.Context, key string, data []byte, etag storage.ETag) (storage.ObjectInfo, error) {
	if err := check(ctx, key); err != nil {
		return storage.ObjectInfo{}, err
	}
	// An empty If-Match is not sent at all, and * matches every state: either
	// would be an overwriting put. An ETag never is one of them or a list.
	if etag == "" || strings.ContainsAny(string(etag), "*, \t\r\n") {
		return storage.ObjectInfo{}, storage.ErrPreconditionFailed
	}
	in := &s3.PutObjectInput{IfMatch: aws.String(string(etag))}
	return s.put(ctx, storage.OpPutIfMatch, key, int64(len(data)), bytes.NewReader(data), in)
}

// put sends one PutObject, with the conditions that are in it.
func (s *Store) put(ctx context.Context, op storage.Op, key string, size int64, body io.ReadSeeker, in *s3.PutObjectInput) (storage.ObjectInfo, error) {
	if err := check(ctx, key); err != nil {
		return storage.ObjectInfo{}, err
	}
	c := s.begin(ctx, op)
	defer c.end()
	in.Bucket, in.Key, in.ContentLength, in.Body = &s.bucket, aws.String(s.prefix+key), &size, c.upload(body)
	out, err := s.client.PutObject(c.ctx, in)
	if err != nil {
		return storage.ObjectInfo{}, c.classify(err)
	}
	etag := aws.ToString(out.ETag)
	if etag == "" {
		return storage.ObjectInfo{}, fmt.Errorf("%w: a response without ETag", storage.ErrUnknownOutcome)
	}
	// The response has no Last-Modified; its Date is the same second or the
	// next.
	return storage.ObjectInfo{Key: key, Size: size, ModTime: c.responseDate(), ETag: storage.ETag(etag)}, nil
}

// Delete implements storage.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := check(ctx, key); err != nil {
		return fmt.Errorf("delete %q: %w", key, err)
	}
	c := s.begin(ctx, storage.OpDelete)
	defer c.end()
	_, err := s.client.DeleteObject(c.ctx, &s3.DeleteObjectInput{Bucket: &s.bucket, Key: aws.String(s.prefix + key)})
	if err == nil {
		return nil
	}
	if err := c.classify(err); !errors.Is(err, storage.ErrNotFound) {
		return fmt.Errorf("delete %q: %w", key, err)
	}
	return nil
}

// List implements storage.Store. It fetches a page, of up to 1000 objects,
// when the consumer has taken the one before.
func (s *Store) List(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.ObjectInfo, error] {
	return func(yield func(storage.ObjectInfo, error) bool) {
		if !beginsKey(prefix) {
			return
		}
		// Ask from what the protocol can carry on, and drop what is too early.
		from := validPart(startAfter)
		for {
			page, more, err := s.page(ctx, prefix, from)
			if err != nil {
				yield(storage.ObjectInfo{}, fmt.Errorf("list %q: %w", prefix, err))
				return
			}
			for _, info := range page {
				from = info.Key
				if info.Key <= startAfter || storage.ValidateKey(info.Key) != nil {
					continue // a directory marker, say, is no object
				}
				if !yield(info, nil) {
					return
				}
			}
			if !more {
				return
			}
		}
	}
}

// page lists objects behind the key from. It refuses what is out of order,
// since callers rely on the order: one key too early is one that they miss.
func (s *Store) page(ctx context.Context, prefix, from string) (page []storage.ObjectInfo, more bool, err error) {
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	c := s.begin(ctx, storage.OpList)
	defer c.end()
	in := &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: aws.String(s.prefix + prefix)}
	if from != "" {
		in.StartAfter = aws.String(s.prefix + from)
	}
	out, err := s.client.ListObjectsV2(c.ctx, in)
	if err != nil {
		return nil, false, c.classify(err)
	}
	last := s.prefix + from
	for _, o := range out.Contents {
		key := aws.ToString(o.Key)
		if key == s.prefix && last == key {
			continue // the marker of the prefix itself
		}
		if key <= last || !strings.HasPrefix(key, s.prefix+prefix) {
			return nil, false, fmt.Errorf("%w: listed %q behind %q for prefix %q", storage.ErrStoreRefused, key, last, s.prefix+prefix)
		}
		last = key
		page = append(page, storage.ObjectInfo{
			Key:     strings.TrimPrefix(key, s.prefix),
			Size:    aws.ToInt64(o.Size),
			ModTime: aws.ToTime(o.LastModified),
			ETag:    storage.ETag(aws.ToString(o.ETag)),
		})
	}
	more = aws.ToBool(out.IsTruncated)
	if more && len(page) == 0 {
		return nil, false, fmt.Errorf("%w: an empty page that is not the last", storage.ErrStoreRefused)
	}
	return page, more, nil
}

// Now implements storage.Store. It makes a request only if no response has
// told the time yet, or the machine has slept since.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	if err := ctx.Err(); err != nil {
		return time.Time{}, fmt.Errorf("store clock: %w", err)
	}
	if now, ok := s.clock.now(); ok {
		return now, nil
	}
	c := s.begin(ctx, storage.OpNow)
	defer c.end()
	_, err := s.client.HeadBucket(c.ctx, &s3.HeadBucketInput{Bucket: &s.bucket})
	if now, ok := s.clock.now(); ok {
		return now, nil // also a refusal carries the date
	}
	if err == nil {
		return time.Time{}, fmt.Errorf("store clock: %w: a response without Date", storage.ErrStoreRefused)
	}
	return time.Time{}, fmt.Errorf("store clock: %w", c.classify(err))
}

func check(ctx context.Context, key string) error {
	if err := storage.ValidateKey(key); err != nil {
		return err
	}
	return ctx.Err()
}
