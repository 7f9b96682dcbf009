package chunk

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

const (
	parquetMagic = "PAR1"
	sealMagic    = "CARDSEAL"
	sealBytes    = 8 + 8 + 8
	tailBytes    = 4 + 4 // footer length, magic
)

// sealFile puts the seal before the footer of a Parquet file. Every offset in
// the footer points before it, so none moves.
func sealFile(data []byte) ([]byte, error) {
	if len(data) < len(parquetMagic)+tailBytes {
		return nil, fmt.Errorf("%w: %d bytes", ErrCorrupt, len(data))
	}
	length := int(binary.LittleEndian.Uint32(data[len(data)-tailBytes:]))
	at := len(data) - tailBytes - length
	if at < len(parquetMagic) {
		return nil, fmt.Errorf("%w: footer of %d bytes in %d", ErrCorrupt, length, len(data))
	}
	seal := make([]byte, 0, sealBytes)
	seal = append(seal, sealMagic...)
	seal = binary.LittleEndian.AppendUint64(seal, xxhash.Sum64(data[:at]))
	seal = binary.LittleEndian.AppendUint64(seal, xxhash.Sum64(data[at:]))
	data = append(data, seal...)
	copy(data[at+sealBytes:], data[at:len(data)-sealBytes])
	copy(data[at:], seal)
	return data, nil
}

// footerBytes is the length of seal, footer and tail, read from a file's last
// bytes, of which there must be at least tailBytes.
func footerBytes(tail []byte, size int64) (int64, error) {
	t := tail[len(tail)-tailBytes:]
	if string(t[4:]) != parquetMagic {
		return 0, fmt.Errorf("%w: no Parquet magic at the end", ErrCorrupt)
	}
	n := int64(binary.LittleEndian.Uint32(t)) + tailBytes + sealBytes
	if n > size-int64(len(parquetMagic)) {
		return 0, fmt.Errorf("%w: footer of %d bytes in a file of %d", ErrCorrupt, n, size)
	}
	return n, nil
}

// openSeal checks the seal over a footer and returns the footer's thrift
// bytes. data is exactly seal, footer and tail.
func openSeal(data []byte) (footer []byte, body uint64, err error) {
	if !bytes.HasPrefix(data, []byte(sealMagic)) {
		return nil, 0, fmt.Errorf("%w: no seal before the footer", ErrCorrupt)
	}
	body = binary.LittleEndian.Uint64(data[8:])
	rest := data[sealBytes:]
	if xxhash.Sum64(rest) != binary.LittleEndian.Uint64(data[16:]) {
		return nil, 0, fmt.Errorf("%w: footer checksum", ErrCorrupt)
	}
	return rest[:len(rest)-tailBytes], body, nil
}

// Verify checks every byte of a whole file against its seal, without decoding
// it. It reports damage as an error that wraps ErrCorrupt; it is for copies
// that another engine will read, which looks at no sum of ours.
func Verify(data []byte) error {
	size := int64(len(data))
	if size < int64(len(parquetMagic)+sealBytes+tailBytes) {
		return fmt.Errorf("%w: %d bytes", ErrCorrupt, size)
	}
	n, err := footerBytes(data, size)
	if err != nil {
		return err
	}
	_, body, err := openSeal(data[size-n:])
	if err != nil {
		return err
	}
	if xxhash.Sum64(data[:size-n]) != body {
		return fmt.Errorf("%w: body checksum", ErrCorrupt)
	}
	return nil
}

// Verify is like the function Verify, for a file that is read in ranges of
// 8 MiB and need not fit in memory. Errors: ErrCorrupt, and those of the
// source; each names the file.
func (f *File) Verify(ctx context.Context) error {
	sum := xxhash.New()
	for at := int64(0); at < f.body; at += maxRequest {
		data, err := readRange(ctx, f.src, span{at, min(maxRequest, f.body-at)})
		if err != nil {
			return fmt.Errorf("verify %s: %w", f.Name(), err)
		}
		if _, err := sum.Write(data); err != nil {
			return fmt.Errorf("verify %s: %w", f.Name(), err)
		}
	}
	if sum.Sum64() != f.sum {
		return fmt.Errorf("verify %s: %w: body checksum", f.Name(), ErrCorrupt)
	}
	return nil
}
