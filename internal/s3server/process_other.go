//go:build !linux

package s3server

import "syscall"

// processAttributes keep a Ctrl-C at the terminal from the server, which we
// then stop in order.
func processAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
