// Command s3 starts an S3 server of its own on the loopback interface, runs a
// command with a store in it, and stops the server again:
//
//	s3 cardinal demo    runs    cardinal demo --store s3://…
//
// It exits as the command does.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"cardinalsin/internal/s3server"
)

func main() {
	err := run(context.Background(), os.Args[1:])
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, "s3:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	if len(args) == 0 {
		return errors.New("usage: s3 COMMAND [ARG …]")
	}
	dir, err := os.MkdirTemp("", "s3-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	srv, err := s3server.Start(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, srv.Stop()) }()
	cmd := exec.CommandContext(ctx, args[0], append(args[1:], "--store", srv.StoreURL("store"))...)
	cmd.Env = append(os.Environ(), srv.Env()...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}
