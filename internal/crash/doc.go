// Package crash kills the real server with SIGKILL under load and checks that
// what it acknowledged is stored, once. Its tests run with the build tag
// crash, as `make crash` does: they take minutes.
package crash
